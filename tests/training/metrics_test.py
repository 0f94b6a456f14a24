import io
import json

from seer_jax.training import metrics, run_log


def write(workdir, resumed_at, *steps):
  writer = metrics.Writer(workdir, resumed_at)
  for step in steps:
    writer.write(step, {"loss": float(step)})
  writer.close()


def steps_of(workdir):
  return [
    line["step"] for line in metrics.read_lines(workdir / "metrics.jsonl")
  ]


def test_resuming_drops_what_came_after_and_a_torn_last_line(tmp_path):
  write(tmp_path, None, 0, 10, 20, 30)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "lo')
  write(tmp_path, 20, 30, 40)
  assert steps_of(tmp_path) == [0, 10, 20, 30, 40]


def test_a_fresh_start_in_a_workdir_without_checkpoint_starts_over(tmp_path):
  write(tmp_path, None, 0, 10)
  write(tmp_path, None, 0)
  assert steps_of(tmp_path) == [0]
  line = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(line) == {"step": 0, "loss": 0.0}


def test_in_a_file_the_bar_is_one_plain_line_a_message():
  file = io.StringIO()
  bar = run_log.Bar(steps=100, done=0, file=file)
  bar.step()
  bar.step()
  bar.tell(
    2,
    {
      "loss": 3.4,
      "loss_over_lnk": 1.0,
      "images_per_second": 250.0,
      "data_wait": 0.05,
    },
  )
  bar.say("hello")
  first, second = file.getvalue().splitlines()
  assert first.startswith("step 2/100, loss 3.400 (1.00 ln K), 250 img/s")
  assert "data wait 5%" in first
  assert "ETA" in first
  assert second == "hello"
