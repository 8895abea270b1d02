"""What cannot be written is said in one sentence that names the file, whatever library finds it out."""

import errno
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

import vexkd.cli.app  # noqa: F401 - the name in the package is the program itself
from vexkd import cli, provenance

NUMBERS = np.arange(100_000.0)


def save_array(path):
    with path.open("wb") as stream:
        np.save(stream, NUMBERS)


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "numpy": save_array,
    "parquet": lambda path: parquet.write_table(pa.table({"x": NUMBERS}), path),
    "safetensors": lambda path: save_file({"x": NUMBERS}, path),
}


@pytest.fixture
def small_files():
    """No file may become larger than 4 kB: what writes more sees what it would on a full disk."""
    limits, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, heard)


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_an_error_of_the_file(tmp_path, small_files, library):
    with pytest.raises(OSError) as refused, provenance.atomic(tmp_path / "file") as temporary:
        WRITERS[library](temporary)
    assert refused.value.filename == str(tmp_path / "file")
    assert refused.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert not list(tmp_path.iterdir())


def test_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as refused, provenance.atomic(tmp_path / "file"):
        (tmp_path / "source").read_text()
    assert refused.value.filename == str(tmp_path / "source")


def test_a_data_set_that_does_not_fit_is_named(tmp_path):
    call = ["synthesize", str(tmp_path / "town"), "--scenes", "1", "--samples", "1", "--workers", "1", "--tables-only"]
    call = f"ulimit -f 4; exec {sys.executable} -m vexkd.cli {' '.join(call)}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"vexkd: {tmp_path}/town: File too large")
    assert not list(tmp_path.iterdir())


def test_an_error_without_a_file_names_the_verb(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.modules["vexkd.cli.app"], "app", full)
    monkeypatch.setattr(sys, "argv", ["vexkd", "page"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "`vexkd page`" in said
    assert "No space left on device" in said
