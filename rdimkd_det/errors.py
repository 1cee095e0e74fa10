"""The one exception for a mistake that the user can mend."""


class ConfigError(ValueError):
    """A config, file or option that the user gave cannot be used.

    Its message is one line: who complains, what was expected, what came, what to do. The command
    lines print that line and exit with status 2.
    """
