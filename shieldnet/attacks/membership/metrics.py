"""What membership attacks may find, and the limits on it."""

from dataclasses import replace

from shieldnet.findings.metrics import OR_LABELS, Limit, Metric

_TOLD = ("AISVS 11.2.5", "AML.T0024.000", "NISTAML.033")
_HELPS = (
    "Regularize the model (fewer epochs, weight decay, a smaller model; of trees, larger leaves "
    f"and less depth){OR_LABELS}: that lowers what is measured. Only private training (of "
    "networks, finetune with DPSGD) bounds it."
)
_ROWS = "members and nonmembers together"
_NEEDS = (
    "it needs labels of at least 20 members and nonmembers drawn at random from one pool; texts "
    "are judged by max_sequence_membership_auc, maps by max_map_membership_auc"
)
_AUC = Limit(
    "max_membership_auc",
    0.60,
    "How well an attacker tells which records were in the training data: the area under the curve "
    "(0.5 is guessing), and the members found while 1% (it needs 300 nonmembers) or 0.1% (3000) of "
    "nonmembers are accused.",
    is_set=True,
    helps=_HELPS,
    needs=_NEEDS,
)


def _at_rate(name: str, suggested: float, needs: str) -> Limit:
    return Limit(name, suggested, "", helps=_HELPS, needs=needs)


_TPR_1 = _at_rate("max_membership_tpr_at_fpr_1e-2", 0.05, "it needs 300 nonmembers with labels")
_TPR_01 = _at_rate("max_membership_tpr_at_fpr_1e-3", 0.01, "it needs 3000 nonmembers with labels")
_CANARIES = replace(
    _AUC,
    name="max_canary_auc",
    suggested=0.70,
    about="records planted to be found: --canaries",
    is_set=False,
    needs="plant canaries before training, and give them with --canaries (canaries=)",
)
_OTHER_RATES = "limits are set at 1% and at 0.1% of nonmembers accused"
_OF_TRAINING = "it is about how the model was trained, on other models: this one is judged"


def _auc_metric(
    name: str,
    title: str,
    limit: Limit,
    *,
    standards: tuple[str, ...] = _TOLD,
    of_groups: bool = False,
    headline: bool = False,
) -> Metric:
    return Metric(
        name,
        title,
        "more",
        limit,
        of_groups=of_groups,
        standards=standards,
        headline=headline,
        training_bound="auc",
        rows=_ROWS,
    )


def _tpr_metrics(
    prefix: str,
    title: str,
    limits: tuple[Limit, Limit],
    *,
    standards: tuple[str, ...] = (),
    of_groups: bool = False,
) -> tuple[Metric, ...]:
    """Describes the members found at 1%, at 0.1%, and at rates that have no limit."""
    rates = (("1e-2", "1%"), ("1e-3", "0.1%"))
    return (
        *(
            Metric(
                f"{prefix}.tpr_at_fpr_{rate}",
                f"{title} at {share} FPR",
                "more",
                limit,
                of_groups=of_groups,
                standards=standards,
                training_bound="tpr",
                rows=_ROWS,
            )
            for (rate, share), limit in zip(rates, limits, strict=True)
        ),
        Metric(
            f"{prefix}.tpr_at_fpr_*",
            f"{title} at an FPR",
            "more",
            ungated=_OTHER_RATES,
            training_bound="tpr",
        ),
    )


METRICS = (
    _auc_metric(
        "membership.auc",
        "membership AUC",
        _AUC,
        standards=("AISVS 11.1.3", *_TOLD),
        headline=True,
    ),
    *_tpr_metrics(
        "membership", "members", (_TPR_1, _TPR_01), standards=(*_TOLD, "EDPB extraction")
    ),
    _auc_metric("membership.averaged.*", "membership AUC, averaged", _AUC),
    _auc_metric(
        "membership.worst_group.auc",
        "worst group AUC",
        Limit(
            "max_worst_group_auc",
            0.70,
            "the worst class or subgroup",
            helps=_HELPS,
            needs="it takes a class or subgroup with 30 members and 30 nonmembers",
        ),
    ),
    _auc_metric(
        "membership.canaries.auc",
        "canaries AUC",
        _CANARIES,
    ),
    *_tpr_metrics(
        "membership.canaries",
        "canaries",
        (
            _at_rate("max_canary_tpr_at_fpr_1e-2", 0.10, _CANARIES.needs),
            _at_rate("max_canary_tpr_at_fpr_1e-3", 0.05, _CANARIES.needs),
        ),
        standards=("EDPB extraction",),
    ),
    _auc_metric(
        "membership.group.*.auc",
        "membership AUC of a group",
        replace(_AUC, suggested=0.70),
        of_groups=True,
    ),
    *_tpr_metrics(
        "membership.group.*",
        "members of a group",
        (replace(_TPR_1, suggested=0.10), replace(_TPR_01, suggested=0.05)),
        of_groups=True,
    ),
    Metric(
        "membership.*.auc",
        "membership AUC of one attack",
        "more",
        ungated="the worst attack is judged, as membership.auc",
        training_bound="auc",
    ),
    Metric(
        "membership.canaries.*.auc",
        "canaries AUC of one attack",
        "more",
        ungated="the worst attack is judged, as membership.canaries.auc",
        training_bound="auc",
    ),
    Metric("membership.pooled.*", "membership, pooled", "more", ungated=_OF_TRAINING),
)

_OF_TEXTS = "it needs texts: members and nonmembers of 20 sequences at least, drawn from one pool"
_SEQUENCE_AUC = replace(
    _AUC,
    name="max_sequence_membership_auc",
    about="membership of a language model's training texts",
    is_set=False,
    helps="Train for fewer epochs, take duplicates out, and release fewer tokens per answer "
    "(TopK, labels alone). Only private training (finetune with DPSGD) bounds it.",
    needs=_OF_TEXTS,
)
OF_GROUPS = tuple(metric for metric in METRICS if metric.of_groups)
OF_SEQUENCES = (
    _auc_metric(
        "membership.sequences.auc",
        "sequence membership AUC",
        _SEQUENCE_AUC,
        standards=("AISVS 11.1.3", *_TOLD),
        headline=True,
    ),
    *_tpr_metrics(
        "membership.sequences",
        "member sequences",
        (
            replace(_TPR_1, name="max_sequence_membership_tpr_at_fpr_1e-2"),
            replace(_TPR_01, name="max_sequence_membership_tpr_at_fpr_1e-3"),
        ),
        standards=(*_TOLD, "EDPB extraction"),
    ),
    Metric(
        "membership.sequences.*.auc",
        "sequence membership AUC of one attack",
        "more",
        ungated="the worst attack is judged, as membership.sequences.auc",
        training_bound="auc",
    ),
)

_OF_IMAGES = "it needs maps of 20 members and nonmembers at least, drawn from one pool"
_MAP_AUC = replace(
    _AUC,
    name="max_map_membership_auc",
    about="membership of a segmentation's training images",
    is_set=False,
    helps="Train for fewer epochs, augment, and release less at each position "
    "(--preset strict; Coarsen for pixels, a larger step for boxes). Only private training "
    "(finetune with DPSGD) bounds it.",
    needs=_OF_IMAGES,
)
OF_MAPS = (
    _auc_metric(
        "membership.maps.auc",
        "map membership AUC",
        _MAP_AUC,
        standards=("AISVS 11.1.3", *_TOLD),
        headline=True,
    ),
    *_tpr_metrics(
        "membership.maps",
        "members by their maps",
        (
            replace(_TPR_1, name="max_map_membership_tpr_at_fpr_1e-2"),
            replace(_TPR_01, name="max_map_membership_tpr_at_fpr_1e-3"),
        ),
        standards=(*_TOLD, "EDPB extraction"),
    ),
    Metric(
        "membership.maps.*.auc",
        "map membership AUC of one attack",
        "more",
        ungated="the worst attack is judged, as membership.maps.auc",
        training_bound="auc",
    ),
)
AVERAGED_AT_POSITIONS = (
    _auc_metric(
        "membership.sequences.averaged.*", "sequence membership AUC, averaged", _SEQUENCE_AUC
    ),
    _auc_metric("membership.maps.averaged.*", "map membership AUC, averaged", _MAP_AUC),
)
