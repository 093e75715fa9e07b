"""Our networks by the name of their builder, one architecture a file."""

from __future__ import annotations

from torch import nn

from robustbench_med.models.networks.covid_net import CovidNet
from robustbench_med.models.networks.fc_densenet import FCDenseNet
from robustbench_med.models.networks.fcn import FCN
from robustbench_med.models.networks.inception_v3 import InceptionV3
from robustbench_med.models.networks.inception_v4 import InceptionV4
from robustbench_med.models.networks.lesion_model import LesionModel
from robustbench_med.models.networks.segnet import SegNet
from robustbench_med.models.networks.vnet import VNet

NETWORKS: dict[str, type[nn.Module]] = {
    "fcn": FCN,
    "segnet": SegNet,
    "vnet": VNet,
    "fc_densenet": FCDenseNet,
    "covid_net": CovidNet,
    "inception_v3": InceptionV3,
    "inception_v4": InceptionV4,
    "lesion_model": LesionModel,
}
