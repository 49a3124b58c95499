"""nbval compares what a cell shows. Progress bars and warnings on stderr are not results and are not committed."""

from nbval.plugin import IPyNbFile

_init = IPyNbFile.__init__


def _without_stderr(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    self.skip_compare = (*self.skip_compare, "stderr")


IPyNbFile.__init__ = _without_stderr
