import os
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from helpers.official_files import cifar10_files, mutations, python2_pickle, random_images, refusal

from periodic_jax import ConfigError
from periodic_jax.data.readers._pickle import unpickle

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 12)
WATCHED = {"exec", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "import", "open"}
_seen: list[str] | None = None


def _watch(event, arguments):
    if _seen is not None and event in WATCHED:
        _seen.append(event)


sys.addaudithook(_watch)


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_the_python_2_pickle_is_a_genuine_one():
    batch = {b"data": ARRAY, b"labels": [1, 300], b"name": b"x" * 300}
    with warnings.catch_warnings(action="ignore"):  # some NumPy tell that numpy.core has moved
        assert same(pickle.loads(python2_pickle(batch), encoding="bytes"), batch)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_python_3_writes(protocol):
    batch = {b"data": ARRAY, "turned": ARRAY.T, b"labels": [1, 300, 70_000], b"name": b"x" * 300, "flags": (True, None)}
    assert same(unpickle(pickle.dumps(batch, protocol=protocol), "batch"), batch)


def test_what_python_2_wrote():
    batch = {b"data": ARRAY, b"labels": [1, 300], b"name": b"x" * 300}
    assert same(unpickle(python2_pickle(batch), "batch"), batch)


def marker(path):
    with open(path, "w"):
        pass


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch marked",)),
        (subprocess.Popen, (["touch", "marked"],)),
        (eval, ("open('marked', 'w')",)),
        (marker, ("marked",)),
        (np.load, ("marked", None, True)),
        (np.frombuffer, (b"", np.uint8)),
        (np.float64, (1.0,)),
        (getattr, ("", "join")),
        (bytearray, (10**15,)),
    ],
)
def test_any_other_name_is_refused_and_nothing_runs(tmp_path, monkeypatch, protocol, function, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        unpickle(pickle.dumps({"data": Call(function, *arguments)}, protocol=protocol), "batch")
    assert list(tmp_path.iterdir()) == []
    if protocol in (2, 3, 4):
        assert f".{function.__name__.split('.')[-1]}; expected a pickle of lists" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02(",  # a mark and no more
        b"\x80\x02Pid\n.",  # a persistent id
        b"\x80\x02Q.",
        b"\x80\x02\x82\x01.",  # an extension
        b"(i__builtin__\neval\n.",  # instances of the oldest protocol
        b"\x80\x02]r\xff\xff\xff\xff",  # a memo of 4 billion entries
        b"\x80\x04\x96" + b"\xff" * 7 + b"\x7f.",  # a bytearray of 2^63 bytes
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.",  # a key whose hash takes 2^60 steps
        b"\x80\x02}" + b")" + b"q\x01h\x01\x86" * 60 + b"K\x01s.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x01xK\x01sb.",  # attributes for a function
        b"\x80\x02cnumpy\ndtype\n)R.",
        b"\x80\x02c_codecs\nencode\nU\x01xU\x05rot13\x86R.",
    ],
)
def test_crafted_instructions_are_refused_at_once(content):
    started = time.process_time()
    assert "data file batch: " in refusal(unpickle, content, "batch")
    assert time.process_time() - started < 10  # where it is followed, it takes years


@pytest.mark.parametrize("array", [ARRAY.astype(np.int32), ARRAY.astype(float), np.array([{}])])
def test_other_arrays_are_refused(array):
    with pytest.raises(ConfigError, match="corrupted"):
        unpickle(pickle.dumps({"data": array}, protocol=2), "batch")


@pytest.mark.parametrize("source", ["python 2", "python 3"])
def test_corrupted_pickles_give_clean_errors_and_nothing_runs(source):
    """Three thousand corrupted batches of each kind."""
    global _seen
    write = python2_pickle if source == "python 2" else lambda batch: pickle.dumps(batch, protocol=4)
    content = cifar10_files(random_images(train=5), write)["data_batch_1"]
    pixels = content.index(random_images(train=5).images[0, 0, :, 0].tobytes())
    refused, _seen = 0, []
    try:
        for corrupted in mutations(content, 3000, keep=slice(pixels, pixels + 3072)):
            refused += bool(refusal(unpickle, corrupted, "batch"))
        seen = _seen
    finally:
        _seen = None
    assert refused > 1000
    assert seen == []
