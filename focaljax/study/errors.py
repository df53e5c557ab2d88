"""The errors of the study: something the user can mend, told in one sentence."""


class StudyError(Exception):
    """A wrong file, column, option or folder. The command line prints it and leaves with code 2."""
