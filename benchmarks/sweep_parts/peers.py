"""The other ways, as their documentation writes them: `python -m sweep_parts.peers WAY TRIALS`.

Each prints a line `trial N` when one has ended. TPE suggests in all of them, two trials run at a time.
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import sys
import tempfile
from typing import Any

from sweep_parts.problem import DROPOUTS, RATES, train_by_hand

AT_A_TIME = 2


def told(number: int) -> None:
    """Say that a trial has ended."""
    print(f"trial {number}", flush=True)


def by_optuna(num_trials: int) -> None:
    """Optuna's `optimize` with two threads, its study in memory."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", *RATES, log=True)
        dropout = trial.suggest_float("dropout", *DROPOUTS)
        return train_by_hand(rate, dropout, lambda loss: None)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(
        objective,
        n_trials=num_trials,
        n_jobs=AT_A_TIME,
        callbacks=[lambda study, trial: told(trial.number)],
    )


def function_trainable(config: dict[str, Any]) -> None:
    """What Tune calls."""
    from ray import tune

    train_by_hand(config["rate"], config["dropout"], lambda loss: tune.report({"loss": loss}))


def nested_trainable(config: dict[str, Any]) -> None:
    """What Tune calls: a Ray Train run of one worker."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trainer = TorchTrainer(
        train_on_a_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"train-trial_id={tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def train_on_a_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls."""
    import ray.train

    train_by_hand(config["rate"], config["dropout"], lambda loss: ray.train.report({"loss": loss}))


def by_tune(trainable: Any, num_trials: int) -> None:
    """Ray Tune with its Optuna searcher."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Told(tune.Callback):
        """Says when a trial has ended."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told(trials.index(trial))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            raise RuntimeError(f"{trial} failed")

    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as storage:
        space = {"rate": tune.loguniform(*RATES), "dropout": tune.uniform(*DROPOUTS), "storage": storage}
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                search_alg=OptunaSearch(seed=0),
                num_samples=num_trials,
                max_concurrent_trials=AT_A_TIME,
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0, callbacks=[Told()]),
        )
        tuner.fit()
    ray.shutdown()


WAYS = {
    "optuna": by_optuna,
    "tune": lambda num_trials: by_tune(function_trainable, num_trials),
    "nested": lambda num_trials: by_tune(nested_trainable, num_trials),
}

if __name__ == "__main__":
    # Functions of this module by name, as a user's own module would hold them.
    from sweep_parts import peers

    peers.WAYS[sys.argv[1]](int(sys.argv[2]))
