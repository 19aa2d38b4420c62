"""The source itself: nothing that runs what a file says, no secret in any tracked file, none carried into an image."""

import ast
import math
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path for room in ("model", "pipelines", "dags", "infra", "benches") for path in (ROOT / room).rglob("*.py")
)

# Modules that make objects, and so code, of bytes.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "torch",
    "yaml",
    "jsonpickle",
}
# Calls that run text, or load what may hold code. Names with a dot by their end.
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "load_model", "saved_model.load"}
CALLS |= {"model_from_json", "model_from_config", "deserialize_keras_object", "enable_unsafe_deserialization"}
CALLS |= {"numpy.load", "np.load", "register_custom_ops_library", "subprocess.getoutput"}
# Keyword arguments that let others do so.
KEYWORDS = {("allow_pickle", True), ("safe_mode", False), ("shell", True), ("trust_remote_code", True)}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a module runs what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            # `re.compile` runs no text, and arrays alone hold no code.
            arrays = any(ast.unparse(keyword) == "allow_pickle=False" for keyword in node.keywords)
            if name != "re.compile" and not arrays and any(name == call or name.endswith("." + call) for call in CALLS):
                yield name
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in KEYWORDS:
                    yield f"{name}({keyword.arg}={keyword.value.value})"
                elif keyword.arg in {one for one, _ in KEYWORDS} and not isinstance(keyword.value, ast.Constant):
                    yield f"{name}({keyword.arg}=…)"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import torch.serialization",
        "eval(x)",
        "keras.models.load_model(p)",
        "keras.layers.deserialize_keras_object(p)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "f(safe_mode=False)",
        "subprocess.run(line, shell=True)",
        "subprocess.run(line, shell=asked)",
        "yaml = __import__('yaml')",
        "import yaml",
        "session.register_custom_ops_library(p)",
    ],
)
def test_the_search_finds(text: str) -> None:
    assert list(dangers(ast.parse(text)))


def tracked() -> list[Path]:
    """Files that git knows; all that lie here in a copy without git."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git, to know which files are the repository's")
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


# The forms of well-known secrets, and assignments of a text to what is called one.
PATTERNS = {
    "AWS key": r"\b(?:AKIA|ASIA|AROA)[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20}",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}\b|\"private_key_id\"",
    "Stripe key": r"\b(?:sk|pk|rk)_live_[0-9A-Za-z]{16,}",
    "other keys": r"\bsk-[A-Za-z0-9_-]{20,}|\bpypi-AgE[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z]{30,}",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.",
    "password in a URL": r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"'{}$<>]+:[^/\s:@\"'{}$<>]+@",
    # A path is where one lies.
    "assigned": r"(?i)\b[\w-]*(?:secret|password|passwd|token|api_?key|access_?key|fernet_?key)[\w-]*[\"']?\s*[:=]\s*"
    r"[\"'][^/\"'\s{}$<>][^\"'\s{}$<>]{5,}[\"']",
}
# What looks like one and is none: file, a part of the match, why.
EXCEPTIONS = {
    ("infra/airflow/values.yaml", "USER:PASSWORD"): "says in capitals what is to be filled in",
    ("tests/dags/test_settings.py", "me:hidden"): "settings that must be refused",
    ("tests/buckets/server.py", "AWS_"): "keys of a server that a test starts on loopback",
    ("tests/buckets/test_words.py", '"nobody"'): "a key that the server must refuse",
    ("tests/pipelines/test_secrecy.py", "canary-"): "canaries: the test looks for them in what is written",
}


def secrets_in(text: str) -> Iterator[tuple[str, str]]:
    """(kind, match) of what looks like a secret."""
    for kind, pattern in PATTERNS.items():
        for found in re.finditer(pattern, text):
            yield kind, found[0]


def test_no_tracked_file_holds_a_secret() -> None:
    found = []
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if path.suffix in (".png", ".npz", ".wav", ".lock"):
            continue
        for kind, match in secrets_in(path.read_text(errors="replace")):
            if not any(name == file and part in match for file, part in EXCEPTIONS):
                found.append((name, kind, match[:40]))
    assert found == []


def test_exceptions_are_still_needed() -> None:
    for file, part in EXCEPTIONS:
        text = (ROOT / file).read_text()
        assert any(part in match for _, match in secrets_in(text)), file


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("AWS key", "AKIA" + "ABCDEFGHIJKLMNOP"),
        ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("GitHub token", "ghp_" + "a1" * 18),
        ("password in a URL", "postgresql://airflow:" + "hunter22@db/airflow"),
        ("assigned", "SECRET_KEY = " + '"abcdefgh"'),
        ("assigned", "password: " + "'correct-horse'"),
        ("JSON web token", ".".join(["eyJ" + "a" * 20] * 2) + ".x"),
    ],
)
def test_the_search_for_secrets_finds(kind: str, text: str) -> None:
    assert kind in {found for found, _ in secrets_in(text)}


def test_no_tracked_file_is_one_of_secrets() -> None:
    """By name; and no long random text in a settings file."""
    named = (
        ".env",
        "*.env",
        "*.pem",
        "*.p12",
        "*.pfx",
        "id_rsa*",
        "id_ed25519*",
        "*credentials*.json",
        ".pypirc",
        ".netrc",
    )
    for path in tracked():
        assert not any(fnmatch(path.name, pattern) for pattern in named), path
        if path.suffix in (".toml", ".yaml", ".yml", ".json", ".cfg", ".ini") and path.stat().st_size < 100_000:
            for word in re.findall(r"[A-Za-z0-9+/_=-]{32,}", path.read_text()):
                counts = Counter(word)
                entropy = -sum(n / len(word) * math.log2(n / len(word)) for n in counts.values())
                assert entropy < 4.3, (path, word)


@pytest.mark.parametrize("name", [".env", "infra/airflow/.env"])
def test_git_is_told_to_leave_out(name: str) -> None:
    """What infra/airflow/new-env.sh makes."""
    tracked()
    assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, check=False).returncode == 0


DOCKERFILES = sorted(path for path in (ROOT / "infra").rglob("*Dockerfile*") if not path.name.endswith(".dockerignore"))


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Instructions of a Dockerfile, continued lines joined."""
    text = re.sub(
        r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    )
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        yield word.upper(), rest.strip()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_images_take_no_secret(path: Path) -> None:
    """None in ARG or ENV, which an image keeps; only named files of the context, and of those no folder above."""
    secret = re.compile(r"secret|passw|token|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
    for word, rest in instructions(path):
        if word in ("ARG", "ENV", "LABEL"):
            assert not secret.search(rest), rest
        elif word in ("COPY", "ADD") and "--from=" not in rest:
            assert word == "COPY", rest
            for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
                assert re.fullmatch(r"[\w./-]+", source), source
                assert not {".", "..", ""} & set(source.split("/")), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_an_image_is_made_from_is_named(path: Path) -> None:
    """Everything is left out but what the Dockerfile copies: neither .env nor a lake goes to whoever builds."""
    lines = [line for line in path.with_name(path.name + ".dockerignore").read_text().splitlines() if line]
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    taken = {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}
    copied = {
        source.rstrip("/")
        for word, rest in instructions(path)
        if word == "COPY" and "--from=" not in rest
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]
    }
    assert taken == copied
    assert not any(fnmatch(".env", name) or fnmatch("infra/airflow/.env", name) for name in taken)


@pytest.mark.parametrize("lock", sorted(ROOT.glob("requirements*.lock")), ids=lambda path: path.name)
def test_locks_have_hashes_and_name_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", re.sub(r"(?m)^\s*--hash=sha256:[0-9a-f]{64}( \\)?$", "", text), re.MULTILINE)
    pins = re.split(r"\n(?=\S)", text.strip())
    assert len(pins) > 20
    for pin in pins:
        assert re.match(r"[\w.-]+(\[[\w,.-]+\])?==[\w.+!]+( ;[^\n]+)? \\\n", pin), pin
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", pin), pin
