"""The one error a user's mistake raises, and what the system says of its own."""


class SpecError(ValueError):
    """What was asked for cannot be done: where, what was found, the rule, and the fix.

    Example:
        >>> print(SpecError("layout.data", "degree 0", "a degree is at least 1", "use data=1"))
        layout.data: degree 0
          rule  a degree is at least 1
          fix   use data=1
    """

    def __init__(self, where: str, found: str, rule: str, fix: str) -> None:
        super().__init__(where, found, rule, fix)
        self.where, self.found, self.rule, self.fix = where, found, rule, fix

    def __str__(self) -> str:
        return f"{self.where}: {self.found}\n  rule  {self.rule}\n  fix   {self.fix}"

    def to_dict(self) -> dict[str, str]:
        """The four parts by name, for `--json`."""
        return {"where": self.where, "found": self.found, "rule": self.rule, "fix": self.fix}


def reason(error: Exception) -> str:
    """Why something failed, in a line: the system's words without its numbers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__
