"""The images' files, read as a builder reads them: instructions, the context, and the root that the last stage is given."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess

from harness import ROOT, place

RUN_MAX = 300.0


class Dockerfile:
    """Instructions of all stages, in order, as (word, rest); continued lines joined, arguments with defaults put in."""

    def __init__(self, path):
        text = re.sub(r"^\s*#.*\n", "", (ROOT / path).read_text(), flags=re.MULTILINE)
        lines = text.replace("\\\n", " ").splitlines()
        self.path, self.instructions, arguments = path, [], {}
        for line in filter(str.strip, lines):
            word, _, rest = line.strip().partition(" ")
            for name, value in arguments.items():
                rest = rest.replace("${" + name + "}", value)
            if word == "ARG":
                name, _, value = rest.partition("=")
                arguments[name] = value
            self.instructions.append((word, " ".join(rest.split())))

    def all(self, word):
        """What follows a word, each time."""
        return [rest for found, rest in self.instructions if found == word]

    def last(self, word):
        """What holds in the end."""
        return self.all(word)[-1]

    def exec_form(self, word):
        """A command as words. One for a shell would need a shell in the image."""
        text = self.last(word)
        return json.loads(text[text.index("[") :])

    def copied(self):
        """What is copied out of the context."""
        return [source for rest in self.all("COPY") if "--from" not in rest for source in rest.split()[:-1]]


def context(ignore):
    """The files that a builder is sent under a .dockerignore: of the repository's own, those its last match lets through."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, timeout=RUN_MAX,
    )  # fmt: skip
    lines = [line for line in (ROOT / ignore).read_text().splitlines() if line and not line.startswith("#")]
    paths = [path for path in listed.stdout.decode().split("\0") if path and (ROOT / path).is_file()]
    return [path for path in paths if admitted(path, lines)]


def admitted(path, lines):
    """Whether the last line that matches the path, or a folder above it, lets it in."""
    verdict = True
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in lines:
        pattern = line.removeprefix("!").strip("/")
        if any(_matches(candidate, pattern) for candidate in above):
            verdict = line.startswith("!")
    return verdict


def _matches(path, pattern):
    if pattern.startswith("**/"):
        return any(_matches(path.split("/", skipped)[-1], pattern[3:]) for skipped in range(path.count("/") + 1))
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def lay_out(home):
    """The root of the binary's image, by the script that its Dockerfile runs, around the binary under test."""
    file = Dockerfile("deploy/Dockerfile")
    (script,) = (step for step in file.all("RUN")[-1].split("&&") if "image-root.sh" in step)
    words = shlex.split(script)
    program, root = words[-2:]
    assert program == "target/release/pointsman", words
    assert f"--from=build {root} /" in file.all("COPY"), "what is laid out is what is copied"
    target = home / "root"
    words[-2:] = [str(place().parent / "debug" / "pointsman"), str(target)]
    subprocess.run(words, cwd=ROOT, check=True, timeout=RUN_MAX)
    owner = file.last("USER")
    (made,) = (rest for rest in file.all("COPY") if f"--chown={owner}" in rest)
    folder = target / made.split()[-1].lstrip("/")
    folder.mkdir(mode=int(re.search(r"--chmod=(\d+)", made).group(1), 8))
    os.chown(folder, *map(int, owner.split(":")))
    return target


def copy_context(target):
    """A copy of what the binary's builder is sent."""
    shutil.rmtree(target, ignore_errors=True)
    for path in context(".dockerignore"):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return target
