"""What every metric means, in the words that stand under tables and figures; the computation is in the named module."""

DEFINITIONS: dict[str, str] = {
    "instance_auroc": "Instance AUROC: raw, ungated instance scores pooled over all instances with a 0/1 label of all "
    "test bags, positive and negative.",
    "instance_f1": "Instance F1: the same instances; positive means score > threshold, the threshold being the "
    "validation instance score with the largest TPR x (1 - FPR). It uses validation instance labels.",
    "instance_auprc": "Instance AUPRC: average precision of the same instances.",
    "instance_froc": "Average FROC: mean sensitivity for lesions at 1/4, 1/2, 1, 2, 4 and 8 false positives per "
    "negative bag. After CAMELYON16, on tiles: a lesion is a connected component (8 neighbours) of positive tiles, a "
    "detection a local maximum of the score on the lattice, a lesion is found by a detection on it.",
    "instance_dice": "Dice: 2 |called and positive| / (|called| + |positive|) per bag with a positive instance, mean "
    "over those bags; called means score > the validation threshold.",
    "bag_auroc": "Bag AUROC: bag logits of all labelled test bags; ties count one half.",
    "bag_auprc": "Bag AUPRC: average precision of the bag logits.",
    "bag_f1": "Bag F1: positive means logit > 0; 0 where nothing is called positive.",
    "bag_ece": "Bag calibration error: expected calibration error of sigmoid(logit), |share of positive bags - mean "
    "probability| averaged over bins of equally many bags (15 at most, of 10 bags or more), weighted by their bags.",
    "dirichlet_raw": "Energy: Dirichlet energy f^T L f of the raw instance scores f over the bag's graph (normalised "
    "Laplacian, weights 1), mean over test bags; lower is smoother, and it grows with the square of the scores' scale.",
    "dirichlet_normalised": "Normalised energy: f^T L f / f^T f, mean over test bags, in [0, 2]; lower is smoother, "
    "whatever the scale.",
    "signed_instance_auroc": "Sign-aware instance AUROC: as instance AUROC, of the sign-aware score: to first order, "
    "how far the bag's logit would rise if the whole bag moved from the average validation instance to this one. "
    "Chosen without instance labels; not the paper's.",
    "signed_instance_f1": "Sign-aware instance F1: as instance F1, of the sign-aware score with its own validation "
    "threshold. Not the paper's.",
}
