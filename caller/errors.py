"""What the person who calls did wrong. What the line does wrong is no exception but part of the report."""


class CallerError(Exception):
    """Root of this package's exceptions; the text is one sentence that names the mend."""


class AddressError(CallerError):
    """The URL or the CA file cannot be used."""


class SpeechError(CallerError):
    """The sound file cannot be used."""


class JudgeError(CallerError):
    """The transcription's packages are not installed."""
