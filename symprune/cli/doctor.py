"""What this machine can run: the command doctor."""

import argparse
import importlib.util
import os
import shutil
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.cli.common import Answer
from symprune.models.load import EMBEDDED, locate


@dataclass(frozen=True)
class Finding:
    """One thing looked at, whether it is as wished, and what was found."""

    what: str
    ok: bool
    found: str


def run_doctor(args: argparse.Namespace) -> Answer:
    """What this machine can run."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    lines = [
        f"{'ok ' if finding.ok else '-- '} {finding.what:<{width}}  {finding.found}" for finding in findings
    ]
    return Answer(
        {finding.what: {"ok": finding.ok, "found": finding.found} for finding in findings}, "\n".join(lines)
    )


def examine() -> list[Finding]:
    """Processor, memory, disk, GPU, dtype, embedded model and corpus, hub, local data, Jupyter tools."""
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(paths.ROOT)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mirror = paths.hub_mirror()
    return [
        Finding(
            "processor",
            True,
            f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads,"
            f" {torch.backends.cpu.get_cpu_capability()}",
        ),
        Finding(
            "memory",
            memory.available > 4 * 2**30,
            f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        ),
        Finding("disk", disk.free > 5e9, f"{disk.free / 1e9:.0f} GB free under {paths.ROOT}"),
        Finding("GPU", bool(gpus), ", ".join(gpus) or "none: use --profile cpu"),
        _faster_dtype("cuda" if gpus else "cpu"),
        _embedded_model(),
        _installed("embedded corpus", "gensim", "embedded"),
        _hub(),
        Finding(
            "SYMPRUNE_DATA",
            mirror is not None and mirror.is_dir(),
            str(mirror) if mirror else "not set: hub corpora need the hub",
        ),
        _installed("notebooks", "papermill", "notebooks"),
        _installed("zero-shot", "lm_eval", "zeroshot"),
    ]


def _faster_dtype(device: str) -> Finding:
    """Nothing is chosen by it: tables are measured in float32 unless their profile says otherwise."""
    ratio = _seconds_of_product(torch.bfloat16, device) / _seconds_of_product(torch.float32, device)
    advice = "--dtype bfloat16 is faster" if ratio < 0.8 else "keep --dtype float32"
    return Finding(
        "dtype",
        True,
        f"a product in bfloat16 takes {ratio:.2f} times as long as in float32 on this {device}: {advice}",
    )


def _seconds_of_product(dtype: torch.dtype, device: str, rounds: int = 5) -> float:
    """The fastest of a few products of two matrices of 1024 x 1024."""
    a = torch.ones(1024, 1024, dtype=dtype, device=device)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _embedded_model() -> Finding:
    try:
        return Finding("embedded model", True, str(locate(EMBEDDED)))
    except UserError as error:
        return Finding("embedded model", False, str(error))


def _installed(what: str, module: str, extra: str) -> Finding:
    found = importlib.util.find_spec(module) is not None
    return Finding(what, found, f"{module} is installed" if found else f"run pip install 'symprune[{extra}]'")


def _hub() -> Finding:
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    host = address.hostname or constants.ENDPOINT
    try:
        socket.create_connection(
            (host, address.port or (80 if address.scheme == "http" else 443)), timeout=3
        ).close()
        return Finding("hub", True, f"{host} answers")
    except OSError:
        return Finding(
            "hub", False, f"{host} cannot be reached: use the embedded model and corpus, or SYMPRUNE_DATA"
        )
