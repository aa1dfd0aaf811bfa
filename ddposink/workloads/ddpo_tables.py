"""What a `ddpo` cell yields and which pictures are drawn of it: the declarations, as tables."""

from __future__ import annotations

from bench.workload import Metric, View
from ddposink.rewards import reward_infos

# Rewards a cell can be scored on: what they are called and their units stand with each of them.
_INFOS = {name: info for name, info in reward_infos().items() if info.evaluated}
EVALUATED = tuple(_INFOS)


def _evaluations() -> tuple[Metric, ...]:
    found = []
    for name, info in _INFOS.items():
        words, unit = info.label or name.replace("_", " "), info.unit
        found += [
            Metric(f"eval_{name}", words, unit, "higher", "near", 0.01, "mean over the held-out pictures"),
            Metric(
                f"gain_{name}", f"gain in {words}", unit, "higher", "near", 0.01,
                "mean paired difference to the base model: same prompts, same noise; samples are prompts",
            ),
            Metric(
                f"effect_{name}", f"{words} (effect)", "SD", "higher", "near", 0.05,
                "gain divided by the standard deviation of the base model's pictures of one prompt",
            ),
        ]  # fmt: skip
    return tuple(found)


METRICS = (
    Metric("trained_reward", "trained reward", "", "higher", "near", 0.01, "the reward trained on, held-out prompts", headline=True),
    Metric("gain", "gain in trained reward", "", "higher", "near", 0.01, "paired difference to base; samples are prompts", headline=True),
    Metric("effect", "effect on trained reward", "SD", "higher", "near", 0.05, "gain over the standard deviation of the base pictures of one prompt", headline=True),
    Metric("others_effect", "effect on the other rewards", "SD", "higher", "near", 0.05, "mean over the rewards not trained on; its parts and its opposite excluded", headline=True),
    Metric("vendi", "effective number of pictures", "", "higher", "near", 0.1, "Vendi score of the held-out pictures in feature space", headline=True),
    Metric("distance", "distance within a prompt", "", "higher", "near", 0.01, "mean cosine distance of pictures of one prompt, in feature space"),
    Metric("kl_per_step", "KL from base", "nats/denoising step", "lower", "near", 0.01, "tuned against base policy at the tuned model's noisy pictures, summed over latent dimensions", headline=True),
    Metric("weight_change", "size of the weight change", "", "lower", "near", 0.01, "Frobenius norm over all tuned matrices"),
    Metric("train_reward", "reward while training", "", "higher", "near", 0.01, "mean over the samples of the last training step"),
    Metric("approx_kl", "approximate KL of an update", "", "none", "near", 1e-4, "half the mean squared log-ratio, whose log-probabilities are means over latent dimensions (sums with log_prob_reduction: sum), hence no nats; last five training steps"),
    Metric("clip_fraction", "clipped ratios", "", "none", "near", 0.02, "part of the ratios outside the clip range, mean of the last five training steps", headline=True),
    Metric("flat_share", "comparisons without preference", "", "none", "near", 0.02, "part of the groups (prompts, steps) whose samples all got one reward, from which nothing can be learnt; mean of the last five training steps"),
    Metric("ratio_mean", "mean of the ratios", "", "none", "near", 1e-4, "of the importance ratios of all samples and denoising steps; mean of the last five training steps"),
    Metric("ratio_std", "deviation of the ratios", "", "none", "near", 1e-4, "of the importance ratios of all samples and denoising steps; mean of the last five training steps"),
    Metric("clipped_above", "ratios clipped above", "", "none", "near", 0.02, "part of the ratios above the clip range, mean of the last five training steps"),
    Metric("clipped_below", "ratios clipped below", "", "none", "near", 0.02, "part of the ratios below the clip range, mean of the last five training steps"),
    Metric("gradient_norm", "norm of the gradient", "", "none", "near", 0.01, "before it is clipped, over all trained weights; mean of the last five training steps"),
    Metric("train_kl_base", "KL from base while training", "nats/denoising step", "none", "near", 1e-3, "summed over latent dimensions, at the samples trained on: all where kl_beta weighs it, a share of them with measure_kl; mean of the last five training steps"),
    Metric("train_loss", "loss", "", "none", "near", 1e-4, "mean of the last five training steps"),
    Metric("reward_queries", "reward queries", "", "none", "exact", help="samples drawn and scored while training"),
    Metric("unet_forwards", "UNet forwards", "", "lower", "exact", help="of one sample, a backward counted as two"),
    Metric("train_seconds", "training time", "s", "lower", "noisy", 0.05, "sampling and updates up to here, without evaluation"),
    Metric("samples_per_s", "training speed", "samples/s", "higher", "noisy", 0.05, "samples drawn and learnt from", headline=True),
    Metric("step_s", "time per training step", "s", "lower", "noisy", 0.05, "median; samples are steps"),
    Metric("sampling_share", "part of the time spent sampling", "", "none", "noisy", 0.1),
    Metric("reward_share", "part of the time in the reward", "", "none", "noisy", 0.1, "of sampling and updates; it is part of the time spent sampling"),
    Metric("learning_share", "part of the time spent learning", "", "none", "noisy", 0.1, "updates, and the base model where it is asked"),
    Metric("seconds_per_effect", "training time per SD of trained reward", "s/SD", "lower", "noisy", 0.1),
    Metric("queries_per_effect", "reward queries per SD of trained reward", "1/SD", "lower", "near", 10.0),
    Metric("state_bytes_analytic", "weights, optimizer and trajectories, predicted", "B", "lower", "exact", help="from the shapes"),
    Metric("state_bytes", "weights and optimizer", "B", "lower", "exact", help="actual tensors"),
    Metric("alloc_peak_bytes", "allocator peak", "B", "lower", "near", help="torch's allocator while training"),
    Metric("reserved_peak_bytes", "allocator peak reserved", "B", "lower", "near", help="torch's allocator"),
    Metric("nvml_process_bytes", "VRAM of the process (NVML)", "B", "lower", "noisy", 0.02),
    Metric("nvml_device_bytes", "VRAM of the device (NVML)", "B", "lower", "noisy", 0.02, "growth of used memory, driver-reserved excluded"),
    Metric("rss_peak_bytes", "peak RSS (host)", "B", "lower", "noisy", 0.05, "host memory while training"),
    Metric("energy_per_sample_j", "energy per training sample", "J", "lower", "noisy", 0.1),
    *_evaluations(),
)  # fmt: skip

_EFFECT = "effect (SD within a prompt)"
VIEWS = (
    View("reward-matrix", "matrix", "What training on a reward does to all of them", "steps", "effect_",
         "scored on", "effect (SD within a prompt)", hue="reward", where={"engine": "native"}, headline=True),
    View("reward-over-noise", "matrix", "What it does beyond training on a reward that knows nothing", "steps", "effect_",
         "scored on", "effect beyond that of training on noise (SD)", hue="reward", where={"engine": "native"},
         headline=True, control=("reward", "noise")),
    View("pictures", "pictures", "The same prompts and noise, before and after", "steps", "effect",
         "training steps", "pictures", hue="reward", series="pictures", where={"engine": "native"}, headline=True),
    View("reward-by-steps", "line", "Trained reward against training steps", "steps", "effect", "training steps",
         _EFFECT, hue="reward", marks=("over_optimised_at",), where={"engine": "native"}, headline=True),
    View("others-by-steps", "line", "Rewards not trained on, against training steps", "steps", "others_effect",
         "training steps", "mean effect on others (SD)", hue="reward", where={"engine": "native"}),
    View("over-optimisation", "scatter", "Trained reward against the others",
         "effect", "others_effect", _EFFECT, "mean effect on others (SD)", hue="reward", where={"engine": "native"}),
    View("reward-by-queries", "line", "Trained reward against reward queries", "queries", "effect", "reward queries",
         _EFFECT, hue="reward", where={"engine": "native"}),
    View("reward-by-forwards", "line", "Trained reward against UNet forwards", "forwards", "effect",
         "UNet forwards (a backward counts as two)", _EFFECT, hue="reward", where={"engine": "native"}),
    View("reward-by-seconds", "line", "Trained reward against training time", "seconds", "effect",
         "seconds of training", _EFFECT, hue="reward", where={"engine": "native"}),
    *(
        View(f"algorithms-by-{x}", "line", f"Algorithms at equal {words}: what is beyond training on noise", x, "effect",
             label, "effect beyond that of training on noise (SD)", hue="algorithm", where={"engine": "native"},
             control=("reward", "noise"), against="effect_{reward}", compares=True, headline=True)
        for x, words, label in (
            ("queries", "reward queries", "reward queries"),
            ("forwards", "model forwards", "UNet forwards (a backward counts as two)"),
            ("seconds", "seconds", "seconds of training"),
        )
    ),
    View("algorithms-others", "line", "Algorithms: rewards not trained on", "queries", "others_effect", "reward queries",
         "mean effect on others (SD)", hue="algorithm", where={"engine": "native"}, compares=True),
    View("algorithms-diversity", "line", "Algorithms: diversity", "queries", "vendi", "reward queries",
         "effective number of pictures", hue="algorithm", where={"engine": "native"}, compares=True),
    View("algorithms-drift", "line", "Algorithms: how far from the base model", "queries", "kl_per_step", "reward queries",
         "KL from base (nats per denoising step, all dimensions)", hue="algorithm", where={"engine": "native"},
         compares=True),
    View("reward-and-diversity", "scatter", "Reward against diversity", "effect", "vendi", _EFFECT,
         "effective number of pictures", hue="reward", where={"engine": "native"}),
    View("kl-by-steps", "line", "How far from the base model", "steps", "kl_per_step", "training steps",
         "KL from base (nats per denoising step, all dimensions)", hue="reward", where={"engine": "native"}),
    View("training-reward", "trace", "Reward while training, both engines", "step", "reward", "training step",
         "mean reward of a step's samples", hue="engine", series="train", where={"reward": "jpeg_compressibility"}),
    View("gradient-norm", "trace", "Norm of the gradient while training", "step", "gradient_norm", "training step",
         "norm of the gradient, before clipping", hue="reward", series="train", where={"engine": "native"}),
    View("kl-while-training", "trace", "KL from the base while training", "step", "kl_base", "training step",
         "KL from base (nats per denoising step)", hue="reward", series="train",
         where={"engine": "native"}),
    View("flat-comparisons", "trace", "Groups without spread while training", "step", "flat_share", "training step",
         "part of the comparisons without preference", hue="reward", series="train", where={"engine": "native"}),
    View("parts-of-the-reward", "trace", "Parts of a weighted reward while training", "step", "part *", "training step",
         "mean of each part, times its weight", hue="reward", series="train", where={"engine": "native"}),
    View("shares-of-the-variance", "trace", "What each part of a weighted reward has to say", "step", "share *",
         "training step", "share of the variance within a group", hue="reward", series="train", where={"engine": "native"}),
    View("time-of-a-step", "trace", "Where the time of a training step goes", "step", "time *", "training step", "seconds",
         hue="reward", series="train"),
    *(
        View(name, "map", f"{title}, by denoising step", "denoising step", f"{array}_by_step", "denoising step", label,
             hue="training step", series="train", where={"engine": "native"})
        for name, title, array, label in (
            ("ratios-by-denoising-step", "How far importance ratios spread", "ratio_std", "deviation of the ratios"),
            ("ratio-means-by-denoising-step", "How far importance ratios lie off one", "ratio_off", "distance of their mean from one"),
            ("clipped-above-by-denoising-step", "Ratios clipped above", "clipped_above", "part of the ratios"),
            ("clipped-below-by-denoising-step", "Ratios clipped below", "clipped_below", "part of the ratios"),
            ("kl-by-denoising-step", "KL from the base while training", "kl_base", "nats, all dimensions"),
        )
    ),
    View("denoising-steps", "trace", "Evaluated with other numbers of denoising steps", "denoising_steps", "effect",
         "denoising steps in evaluation", _EFFECT, hue="reward", series="denoising", where={"engine": "native"}),
)  # fmt: skip
