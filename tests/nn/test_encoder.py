import pytest
import torch
from torchvision.models import get_model

from gmtool.nn.encoder import Encoder


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_equals_torchvisions_own_where_it_has_one(output_stride: int) -> None:
    encoder = Encoder("resnet50", output_stride=output_stride).eval()
    reference = get_model(
        "resnet50", weights=None, replace_stride_with_dilation=[False, output_stride == 8, True]
    ).eval()
    reference.fc = torch.nn.Identity()
    reference.load_state_dict(encoder.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(image)[-1].mean(dim=(2, 3)), reference(image))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_parameters_keep_torchvisions_names(name: str) -> None:
    official = {key for key in get_model(name, weights=None).state_dict() if not key.startswith("fc.")}
    assert set(Encoder(name, output_stride=8).state_dict()) == official
