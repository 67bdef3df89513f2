"""A multi-frame image of 1 GiB: in, back, and back again without two members, in bounded memory.

Made with pydicom, frame by frame, so that the test itself needs little memory, too. Every frame is different; a tenth
of the pixels is random, the rest black, as an ultrasound's are.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from random import Random

import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

from raidd import api
from tests.support.real_daemon import RealDaemon, member_folders, real_daemon

FRAMES, ROWS, COLUMNS = 1024, 1024, 1024
UID = "1.2.826.0.1.3680043.8.498.1"
RESIDENT_LIMIT_MIB = 400


def write_cine_loop(path: Path) -> str:
    """The file, and its SHA-256. Pixel Data comes last (PS3.5, section 8): its header is written by pydicom, too."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(UID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = UltrasoundMultiFrameImageStorage, UID
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{UID}.2", f"{UID}.3"
    image.PatientName, image.PatientID, image.Modality = "Miller^Rex", "4711", "US"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.NumberOfFrames, image.Rows, image.Columns = FRAMES, ROWS, COLUMNS
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    dcmwrite(path, image, enforce_file_format=True)
    length = FRAMES * ROWS * COLUMNS
    random = Random(UID)
    with path.open("ab") as file:
        file.write(b"\xe0\x7f\x10\x00OB\0\0" + length.to_bytes(4, "little"))
        for _ in range(FRAMES):
            file.write(random.randbytes(ROWS * COLUMNS // 10).ljust(ROWS * COLUMNS, b"\0"))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_of_a_gibibyte_goes_through_in_bounded_memory(tmp_path: Path) -> None:
    """1. Drop it, by a rename from beside the inbox. 2. Read it back with raidctl and over the socket: equal. 3. Take
    two members away, a data shard's among them: equal. 4. Let it verify. 5. Never was more than 400 MiB resident."""
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 6), trial=True) as raidd:
        loop = tmp_path / "loop.dcm"
        sha256 = write_cine_loop(loop)
        size = loop.stat().st_size
        loop.rename(raidd.inbox / "loop.dcm")
        raidd.wait_idle()
        (row,) = raidd.images()
        assert (row["sha256"], row["size"], row["state"]) == (sha256, size, "protected")
        back = tmp_path / "back.dcm"
        raidd.raidctl("get", UID, "-o", str(back)).ok()
        with back.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
        back.unlink()
        assert streamed(raidd) == sha256
        for member in (0, 1):
            raidd.member_folder(member).rename(tmp_path / f"away{member}")
        raidd.until(lambda: list(raidd.states().values()).count("missing") == 2, "two members are away")
        assert streamed(raidd) == sha256
        raidd.raidctl("verify", "--all").ok()
        peak_mib = raidd.peak_rss_mib()
        print(f"peak resident set: {peak_mib:.0f} MiB")
        assert peak_mib < RESIDENT_LIMIT_MIB
    shutil.rmtree(tmp_path)  # pytest would keep these gibibytes for three runs


def streamed(raidd: RealDaemon) -> str:
    """SHA-256 of the image as the socket gives it."""
    digest = hashlib.sha256()
    with raidd.http() as asking, asking.stream("GET", api.IMAGE_CONTENT.format(uid=UID)) as reply:
        reply.raise_for_status()
        for piece in reply.iter_bytes():
            digest.update(piece)
    return digest.hexdigest()
