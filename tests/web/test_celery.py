"""The example worker under real Celery: two children of the prefork pool that end after five tasks each."""

import os
from collections import Counter
from pathlib import Path

from .conftest import needs
from .servers import EXAMPLES, eventually, stored

needs("celery")

CONFIG = """
from pathlib import Path
here = Path(__file__).parent
broker_url = "filesystem://"
broker_transport_options = {name: str(here / "queue") for name in ("data_folder_in", "data_folder_out")}
broker_transport_options |= {"control_folder": str(here / "control"), "polling_interval": 0.05}
broker_connection_retry_on_startup = True
worker_max_tasks_per_child = 5
worker_prefetch_multiplier = 1
task_ignore_result = True
"""
TASKS = 12


def test_a_worker_whose_children_end_loses_nothing_and_sends_nothing_twice(run, sidecar, api, tmp_path: Path):
    (tmp_path / "celeryconfig.py").write_text(CONFIG)
    (tmp_path / "queue").mkdir()
    (tmp_path / "control").mkdir()
    path = os.pathsep.join([str(tmp_path), str(EXAMPLES / "celery_worker")])
    env = {"TILLPOST_URL": sidecar.url, "PYTHONPATH": path}
    overwritten = api.overwritten
    ask = f"import orders\nfor n in range({TASKS}): orders.ship.delay(f'T-{{n}}', f'C-{{n % 3}}')"
    assert run("-c", ask, env=env, cwd=tmp_path).process.wait(60) == 0
    worker = run(
        "-m", "celery", "-A", "orders", "worker", "-P", "prefork", "-c", "2", "--without-gossip", "--without-mingle",
        env=env, cwd=tmp_path,
    )  # fmt: skip

    def shipped() -> list[str]:
        return [record["params"]["orderId"] for record in stored(api, "order.shipped")]

    eventually(lambda: len(shipped()) >= TASKS, 60)
    took = worker.end()
    packed = stored(api, "order.packed")
    assert sorted(shipped()) == sorted(f"T-{n}" for n in range(TASKS))
    assert sorted(record["params"]["orderId"] for record in packed) == sorted(shipped())
    assert all(record["client"] == {"customId": f"C-{int(record['params']['orderId'][2:]) % 3}"} for record in packed)
    assert api.overwritten == overwritten
    done = Counter(record["params"]["worker"] for record in packed)
    assert len(done) >= 3, "two children at a time, and others after them"
    assert max(done.values()) <= 5, "children end after five tasks"
    assert took < 20


LAST_WORDS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from celery.concurrency.prefork import process_destructor
import orders
if (pid := os.fork()) == 0:
    orders.ship("last", "C-1")
    process_destructor(os.getpid(), 0)  # as the pool does
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_child_hands_over_the_events_of_its_last_task_before_it_is_gone(run, sidecar, api):
    program = run("-c", LAST_WORDS, EXAMPLES / "celery_worker", env={"TILLPOST_URL": sidecar.url})
    program.process.wait(30)
    assert program.process.returncode == 0, program.said
    eventually(lambda: any(record["params"]["orderId"] == "last" for record in stored(api, "order.shipped")))
