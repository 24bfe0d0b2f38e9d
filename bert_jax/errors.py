"""The one exception that users are meant to read: a single line that says what is wrong and what to do."""


class BertJaxError(Exception):
    """Wrong input, configuration or environment. The command line prints it as one line and exits with status 1."""
