"""The ``trvae`` command: a thin shell over the Python API."""

from trvae.cli._commands import calibrate, evaluate, map_query, train, transfer
from trvae.cli._demo import demo
from trvae.cli._options import app
from trvae.cli._reporting import reporting

__all__ = ["app"]

# In the order in which --help lists them.
app.command()(reporting(demo))
app.command()(reporting(train))
app.command()(reporting(calibrate))
app.command()(reporting(transfer))
app.command("map")(reporting(map_query))
app.command()(reporting(evaluate))
