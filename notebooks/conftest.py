"""nbval compares what a cell shows. Progress bars and warnings on stderr are not results and are not committed, and values of claims
may differ in their last digit, as they do between kinds of processor; verdicts may not."""

from nbval.plugin import IPyNbCell, IPyNbFile

from une_utils.report.claims import as_committed

_init, _compare = IPyNbFile.__init__, IPyNbCell.compare_outputs


def _without_stderr(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    self.skip_compare = (*self.skip_compare, "stderr")


def _but_for_the_last_digit(self, test, ref, skip_compare=None):
    committed = "".join(output["text"] for output in ref if output.get("name") == "stdout")
    for output in test:
        if output.get("name") == "stdout":
            output["text"] = as_committed(output["text"], committed)
    return _compare(self, test, ref, skip_compare)


IPyNbFile.__init__, IPyNbCell.compare_outputs = _without_stderr, _but_for_the_last_digit
