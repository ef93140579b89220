"""The one kind of error a user causes and a user can mend."""


class UserError(Exception):
    """What is wrong, what was expected and what to do, in one line.

    The command line prints the line and exits with code 2; LAMMPS prints it and stops all ranks. Anything else that
    escapes is a defect of ours and keeps its traceback.
    """
