"""What is wrong with a data set, in one line that says what to do."""


class DataError(ValueError):
    """A data set is missing, damaged or not what it should be."""


class MissingData(DataError):
    """A data set is not here."""
