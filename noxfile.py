"""`nox -s NAME`: the checks of `scripts/dev`, each in an environment of its own. `nox -l` lists them."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "quick"]
TORCH = "torch==2.13.0"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def check(session: nox.Session, extra: str) -> None:
    """Install the package with an extra and run the check that the session is named after."""
    session.install(TORCH)
    session.install("-e", f".[{extra}]")
    session.run("scripts/dev", session.name.partition("-")[0], external=True)


@nox.session(python=PYTHONS)
def quick(session: nox.Session) -> None:
    """The tests of a minute."""
    check(session, "test")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Every test."""
    check(session, "test")


for name in ("lint", "types", "thorough", "coverage", "docs", "bench", "ratios", "versions"):

    @nox.session(name=name)
    def _(session: nox.Session) -> None:
        check(session, "test,dev")
