"""Weight files as they are written: what a full disk says, and the same bytes each time."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path

import numpy as np
import pytest

from model.weights import fetch, store
from model.weights.weight_files import write_tensors


def test_a_file_that_cannot_grow_is_an_os_error(tmp_path: Path) -> None:
    """The library's own error names the cause in words only; a size limit stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(4 << 20, np.float16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG


@pytest.mark.real
def test_real_weights_convert_to_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second home, out of verified downloads where a folder of them is shared, else fetched again."""
    first = fetch.ensure("smollm2-135m-instruct")
    assert store.damaged(first) == []
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path))
    second = fetch.ensure("smollm2-135m-instruct")
    assert second.parent.parent == tmp_path
    stamps = [json.loads((folder / store.STAMP).read_text("utf-8")) for folder in (first, second)]
    assert stamps[0] == stamps[1]
    assert stamps[0]["files"].keys() >= {"model.safetensors", "tokenizer.json", "config.json"}
