"""Reads what `pointsman quota audit` prints."""

import re

from harness import command

SUM = re.compile(r"\b(charged|outstanding)\b\s*[=:]?\s*([\d_,]+)")


def audited(data):
    """The tokens charged, by an audit that passes and finds nothing outstanding."""
    audit = command("quota", "audit", "--data", data)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    lines = audit.stdout.splitlines()
    lines = [line for line in lines if "token" in line] or lines
    sums = [(name, int(re.sub("[_,]", "", number))) for line in lines for name, number in SUM.findall(line)]
    charged = [number for name, number in sums if name == "charged"]
    outstanding = [number for name, number in sums if name == "outstanding"]
    assert charged and outstanding, f"the sums of the algebra are not in:\n{audit.stdout}"
    assert set(outstanding) == {0}, audit.stdout
    # Each account of the tree is charged for the same answers: the root's sum is the largest.
    return max(charged)
