"""The images that the benchmarks store: CT slices, DX exposures, one long cine loop. Random pixels: nothing compresses.

Each set is new (its UIDs and pixels come from the seed), so that nothing is a duplicate of an earlier round's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
)

RANDOM_BLOCK = 16 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """`images` files of `frames` × `rows` × `columns` pixels of `pixel_bytes` each, in one study."""

    name: str
    images: int
    modality: str
    sop_class: str
    rows: int
    columns: int
    pixel_bytes: int
    frames: int = 1

    def scaled(self, factor: float) -> Workload:
        """Fewer images; a single one keeps its size."""
        return replace(self, images=max(1, round(self.images * factor)))


CT = Workload("CT", 1000, "CT", CTImageStorage, 512, 512, 2)
DX = Workload("DX", 40, "CR", ComputedRadiographyImageStorage, 3072, 2560, 2)
CINE = Workload("cine", 1, "US", UltrasoundMultiFrameImageStorage, 1024, 1024, 1, frames=1024)
WORKLOADS = {one.name: one for one in (CT, DX, CINE)}


def write_set(workload: Workload, folder: Path, seed: int) -> list[Path]:
    """The workload's files, made in the new folder `folder`."""
    folder.mkdir(parents=True)
    random = Random(f"{workload.name}/{seed}")
    study = f"2.25.{random.getrandbits(100)}"
    block = random.randbytes(RANDOM_BLOCK)
    return [_write(workload, folder / f"{n:05}.dcm", study, n, block, random) for n in range(workload.images)]


def _write(workload: Workload, path: Path, study: str, number: int, block: bytes, random: Random) -> Path:
    length = workload.frames * workload.rows * workload.columns * workload.pixel_bytes
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = workload.sop_class, f"{study}.1.{number + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.1"
    dataset.PatientName, dataset.PatientID, dataset.PatientSpeciesDescription = "Miller^Rex", "4711", "dog"
    dataset.StudyDate, dataset.Modality, dataset.InstanceNumber = "20261124", workload.modality, number + 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = workload.frames, workload.rows, workload.columns
    dataset.BitsAllocated = dataset.BitsStored = 8 * workload.pixel_bytes
    dataset.HighBit, dataset.PixelRepresentation = 8 * workload.pixel_bytes - 1, 0
    dataset.PixelData = b"".join(_pixels(block, length, random))
    dataset["PixelData"].VR = "OB" if workload.pixel_bytes == 1 else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def _pixels(block: bytes, length: int, random: Random) -> Iterator[bytes]:
    """`length` bytes out of `block`, from another place in each image."""
    while length > 0:
        start = random.randrange(len(block) // 2)
        piece = block[start : start + length]
        length -= len(piece)
        yield piece
