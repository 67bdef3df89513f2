"""Why a file is refused: a closed list of codes, each with the sentence a person finds in NAME.reason.txt.

A code, once released, keeps its meaning: metrics and scripts count by it. Files that nobody meant as images
(what file managers, viewers and CDs bring along) are `silent`: moved away with their reason, no alert.
"""

from __future__ import annotations

from enum import StrEnum


class RefusalCode(StrEnum):
    """The closed list."""

    EMPTY = "empty"
    NOT_DICOM = "not-dicom"
    NO_UID = "no-sop-instance-uid"
    DICOMDIR = "dicomdir"
    JUNK = "not-an-image"
    NOT_A_FILE = "not-a-file"
    TOO_LARGE = "too-large"
    UNSTORABLE = "unstorable"

    @property
    def sentence(self) -> str:
        """What happened and what to do about it."""
        return _SENTENCES[self]

    @property
    def silent(self) -> bool:
        """True when no alert is due: nobody expects this file to be kept."""
        return self in (RefusalCode.DICOMDIR, RefusalCode.JUNK)


_SENTENCES = {
    RefusalCode.EMPTY: "The file is empty. Send it again; if it arrives empty again, check the sender.",
    RefusalCode.NOT_DICOM: "No DICOM reader can make sense of this file. If it is an image, send it again.",
    RefusalCode.NO_UID: "The file has no SOP Instance UID, so it cannot be told from other images. "
    "Export it again from the machine that made it.",
    RefusalCode.DICOMDIR: "A DICOMDIR is the table of contents of a CD, not an image. The images beside it were taken.",
    RefusalCode.JUNK: "A file of an operating system or a program, not an image. Nothing is missing.",
    RefusalCode.NOT_A_FILE: "A link, pipe, socket or device. raidd takes plain files in plain folders only; "
    "bring another folder in with a bind mount.",
    RefusalCode.TOO_LARGE: "The file is larger than image_max_gib in the settings allows. "
    "Raise it and drop the file again.",
    RefusalCode.UNSTORABLE: "The array refused this image although it took the others. "
    "Please report it; keep this file, it is the only copy.",
}


def refusal_code(word: str) -> RefusalCode:
    """The code for a word of the header reader; one it does not know means "not DICOM"."""
    try:
        return RefusalCode(word)
    except ValueError:
        return RefusalCode.NOT_DICOM


def reason_text(code: RefusalCode, detail: str, source: str, at: str) -> str:
    """The contents of NAME.reason.txt: the code on its own line first, for scripts."""
    lines = [f"code: {code}", code.sentence]
    if detail:
        lines.append(f"detail: {detail}")
    return "\n".join([*lines, f"from: {source}", f"at: {at}", ""])
