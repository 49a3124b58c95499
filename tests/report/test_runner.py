import json
import subprocess
import sys
import textwrap

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from une_utils import settings
from une_utils.report import runner

# Kernels import the package afresh, so a notebook that saves something points it at the small project first.
SAVE = """
from pathlib import Path
from une_utils import settings
settings.NOTEBOOKS = Path.cwd()
settings.ROOT, settings.MODELS, settings.CLAIMS = (Path.cwd().parent / p for p in ("", "data/models", "claims.yaml"))
profile = settings.load_profile(profile_name)
from une_utils.report.claims import ledger, record
import matplotlib.pyplot as plt
from une_utils.report.figures import save_figure
fig, ax = plt.subplots()
ax.plot([1, 2])
ax.set(title="t", xlabel="x", ylabel="y")
save_figure(fig, "line", notebook="02", profile=profile, caption="A line.")
record(profile, "une.table1.noise_ad", 95)
"""


def run(*arguments):
    return runner.main(["--profile", "mini", *arguments])


def executed(project, name="02_gauss"):
    return nbformat.read(project / "cache/runs/mini" / f"{name}.ipynb", as_version=4)


def test_runs_then_skips_then_says_what_changed(project, capsys, write_notebook):
    notebook = project / "notebooks/02_gauss.ipynb"
    write_notebook(notebook, SAVE, "import os; os.environ['HF_HUB_OFFLINE'], Path.cwd().name, profile_name")
    assert run() == 0
    assert "02_gauss.ipynb  ran" in capsys.readouterr().out
    assert executed(project).cells[-1].outputs[0].data["text/plain"] == "('1', 'notebooks', 'mini')"

    assert run() == 0
    assert "skipped, nothing it depends on" in capsys.readouterr().out
    for name, reason in {"line.png": "missing: line", "claims.json": "missing: une.table1.noise_ad"}.items():
        path = project / "figures/mini" / name
        content = path.read_bytes()
        path.unlink()
        run("--list")
        assert reason in capsys.readouterr().out
        path.write_bytes(content)
    (project / "requirements.txt").write_text("numpy")
    (project / "une_utils/new.py").write_text("")
    run("--list")
    assert "changed: package, requirements" in capsys.readouterr().out
    run("--list", "-p", "profile_name=3")
    assert "use --profile" in capsys.readouterr().err


def test_failure_keeps_the_notebook_and_stops(project, capsys, write_notebook):
    write_notebook(project / "notebooks/02_gauss.ipynb", "print('before')", "raise ValueError('went wrong')", "print('after')")
    write_notebook(project / "notebooks/03_probes.ipynb", "1")
    assert run() == 1
    out = capsys.readouterr().out
    assert "ValueError: went wrong" in out and str(project / "cache/runs/mini/02_gauss.ipynb") in out
    assert "02_gauss.ipynb   failed" in out and "03_probes.ipynb  not run" in out
    outputs = [o for c in executed(project).cells if c.cell_type == "code" for o in c.outputs]
    assert outputs[0].text == "before\n" and outputs[1].ename == "ValueError" and len(outputs) == 2
    run("--list", "--only", "02")
    assert "no complete run yet" in capsys.readouterr().out


def test_a_cell_that_takes_too_long_fails(project, capsys, write_notebook):
    write_notebook(project / "notebooks/02_gauss.ipynb", "import time; time.sleep(60)")
    assert run("--timeout", "1") == 1
    assert "failed" in capsys.readouterr().out


def test_overrides_reach_the_notebook(project, write_notebook):
    parameters = 'profile_name = "mini"\nsteps = 1'
    write_notebook(project / "notebooks/02_gauss.ipynb", "profile_name, steps", parameters=parameters)
    assert run("-p", "steps=7") == 0
    assert executed(project).cells[-1].outputs[0].data["text/plain"] == "('mini', 7)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-p", "stepz=7"], "does not declare stepz; its parameters cell declares profile_name"),
     (["-p", "steps"], "expected key=value"), (["--only", "02", "77"], "no notebook with number 77; there are 02"),
     (["--profile", "nowhere"], "unknown profile 'nowhere'"), (["--in-place", "-p", "a=1"], "without -p"),
     (["--profile", "ci", "--in-place"], "--in-place works with --profile mini")],
)  # fmt: skip
def test_refuses_before_anything_runs(project, capsys, arguments, message):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err and not (project / "cache").exists()


def test_a_notebook_without_kernelspec_is_refused(project, capsys):
    notebook = project / "notebooks/02_gauss.ipynb"
    notebook.write_text(json.dumps(json.loads(notebook.read_text()) | {"metadata": {}}))
    assert run() == 2
    assert "should name kernelspec python3" in capsys.readouterr().err


def test_pictures_on_disk_count_as_inputs(project, monkeypatch, capsys):
    monkeypatch.delenv("UNE_LFW_PARQUET", raising=False)
    assert runner.main(["--profile", "lfw", "--list"]) == 2
    assert "UNE_LFW_PARQUET" in capsys.readouterr().err
    pictures = project / "lfw.parquet"
    pictures.write_bytes(b"1")
    monkeypatch.setenv("UNE_LFW_PARQUET", str(pictures))
    job, notebook = runner.Job(settings.load_profile("lfw"), "lfw"), project / "notebooks/02_gauss.ipynb"
    before = runner.run_inputs(notebook, job)
    pictures.write_bytes(b"22")
    after = runner.run_inputs(notebook, job)
    assert [kind for kind in before if before[kind] != after[kind]] == ["pictures"]


def test_order_follows_the_numbers(project, write_notebook):
    for name in ("11b_b", "11_a", "90_z", "12_c", "00_a"):
        write_notebook(project / f"notebooks/{name}.ipynb")
    assert [runner.number(p) for p in runner.find_notebooks()] == ["00", "02", "11", "11b", "12", "90"]
    assert [p.stem for p in runner.find_notebooks(["11b", "00"])] == ["00_a", "11b_b"]


def test_a_profile_skips_notebooks_and_says_why(project, capsys):
    profile = settings.load_profile("mini").model_copy(update={"skip": {"02": "there is nothing to test"}})
    assert runner.chosen(runner.find_notebooks(), profile) == []
    assert "02_gauss.ipynb: left out by profile mini, there is nothing to test" in capsys.readouterr().out
    assert runner.chosen(runner.find_notebooks(), settings.load_profile("mini")) == runner.find_notebooks()


def test_a_notebook_is_left_out_where_what_it_needs_is_missing(project, capsys, write_notebook):
    write_notebook(project / "notebooks/11_shifts.ipynb")
    profile = settings.load_profile("mini").model_copy(update={"shifts": []})
    assert [p.stem for p in runner.chosen(runner.find_notebooks(), profile)] == ["02_gauss"]
    assert "11_shifts.ipynb: left out by profile mini, no shift of h-space" in capsys.readouterr().out


def test_in_place_writes_a_notebook_fit_to_commit(project, capsys, write_notebook):
    code = "import sys; print('kept'); print('10%|#  | 1/9', file=sys.stderr)"
    notebook = write_notebook(project / "notebooks/02_gauss.ipynb", code, "", "profile_name")
    before = [c["source"] for c in json.loads(notebook.read_text())["cells"]]
    assert run("--in-place") == 0
    raw = json.loads(notebook.read_text())
    assert [c["source"] for c in raw["cells"]] == before
    assert [c["id"] for c in raw["cells"]] == ["title", "parameters", "code-0", "code-1", "code-2"]
    assert [c["execution_count"] for c in raw["cells"] if c["cell_type"] == "code"] == [1, 2, None, 3]
    assert "papermill" not in notebook.read_text() and raw["metadata"]["kernelspec"]["name"] == "python3"
    assert raw["cells"][2]["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["kept\n"]}]
    capsys.readouterr()
    first = notebook.read_bytes()
    assert run("--in-place") == 0 and "skipped" in capsys.readouterr().out
    assert run("--in-place", "--force") == 0 and notebook.read_bytes() == first


def test_kernel_of_another_interpreter_is_refused(monkeypatch):
    runner.check_kernel()
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: KernelSpec(argv=["/elsewhere/bin/python"]))
    with pytest.raises(runner.RunnerError, match="starts /elsewhere/bin/python"):
        runner.check_kernel()


def test_ctrl_c_says_how_to_resume(project, write_notebook):
    write_notebook(project / "notebooks/02_gauss.ipynb", "open('started', 'w').close()", "import time; time.sleep(60)")
    code = f"""
        import os, signal, sys, threading, time
        from pathlib import Path
        from une_utils import settings
        from une_utils.report import runner
        root = Path({str(project)!r})
        settings.ROOT, settings.NOTEBOOKS, settings.CLAIMS = root, root / "notebooks", root / "claims.yaml"
        def interrupt():
            while not (root / "notebooks/started").exists():
                time.sleep(0.1)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts its children with SIGINT ignored
        sys.exit(runner.main(["--profile", "mini"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 130 and "the same command resumes" in done.stderr
