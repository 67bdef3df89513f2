"""A few small images of a veterinary hospital, for what a person is shown: names, species and dates as in practice.

Always the same bytes, so that what commands print about them can be written down.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.1427"  # of no other maker's images
SIDE = 256


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: ``number`` makes its UIDs and its pixels."""

    name: str
    number: int
    study: int
    patient: str
    owner: str
    species: str
    modality: str
    description: str
    date: str

    @property
    def uid(self) -> str:
        return f"{ROOT}.{self.study}.1.{self.number}"

    @property
    def study_uid(self) -> str:
        return f"{ROOT}.{self.study}"

    def data(self) -> bytes:
        """The file's bytes."""
        meta = FileMetaDataset()
        classes = {"CT": CTImageStorage, "DX": DigitalXRayImageStorageForPresentation}
        meta.MediaStorageSOPClassUID = classes[self.modality]
        meta.MediaStorageSOPInstanceUID = self.uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        image.SpecificCharacterSet = "ISO_IR 192"
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, self.uid
        image.StudyInstanceUID, image.SeriesInstanceUID = self.study_uid, f"{self.study_uid}.1"
        image.PatientName, image.PatientID = self.patient, f"P{self.study:04}"
        image.PatientSpeciesDescription, image.ResponsiblePerson = self.species, self.owner
        image.Modality, image.StudyDescription, image.StudyDate = self.modality, self.description, self.date
        image.InstanceNumber, image.SeriesNumber = self.number, 1
        image.Rows = image.Columns = SIDE
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelData = Random(self.number).randbytes(2 * SIDE * SIDE)
        file = io.BytesIO()
        image.save_as(file, enforce_file_format=True)
        return file.getvalue()


SAMPLES = (
    Sample("rex-1.dcm", 1, 7, "Müller^Rex", "Müller^Anna", "canine", "DX", "Thorax", "20261120"),
    Sample("rex-2.dcm", 2, 7, "Müller^Rex", "Müller^Anna", "canine", "DX", "Thorax", "20261120"),
    Sample("minka.dcm", 3, 8, "Jansen^Minka", "Jansen^Piet", "feline", "CT", "Head", "20261123"),
)


def write_samples(folder: Path) -> None:
    """The files, under their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        (folder / sample.name).write_bytes(sample.data())
