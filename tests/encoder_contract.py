"""What every encoder keeps, whoever made it: a new one is tested by a class of a few lines."""

import onnxruntime
import torch
from gmtool_export.graph.onnx import export_graph

from gmtool.config import ModelConfig
from gmtool.nn.encoder import Encoder
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.timm_encoder import TimmEncoder


class EncoderContract:
    """Inherited by a test class that says which encoder it is about."""

    name: str
    decoder = "guidedmix"
    output_stride: int | None = None
    """As asked for."""
    last_stride = 8
    """As it comes."""

    def config(self) -> ModelConfig:
        return ModelConfig(
            encoder=self.name,
            output_stride=self.output_stride,  # type: ignore[arg-type]
            decoder=self.decoder,  # type: ignore[arg-type]
            decoder_channels=32,
        )

    def network(self) -> GuidedMixNet:
        torch.manual_seed(0)
        return GuidedMixNet(self.config(), num_classes=6, num_foreground=5).eval()

    def encoder(self) -> Encoder | TimmEncoder:
        return self.network().encoder

    def test_maps_have_the_strides_and_channels_that_it_says(self) -> None:
        encoder = self.encoder()
        side = encoder.multiple
        with torch.no_grad():
            maps = encoder(torch.zeros(2, 3, 2 * side, 3 * side))
        expected = [
            (2, channels, 2 * side // stride, 3 * side // stride)
            for stride, channels in zip(encoder.strides, encoder.channels, strict=True)
        ]
        assert [tuple(each.shape) for each in maps] == expected
        assert encoder.strides[-1] == self.last_stride
        assert list(encoder.strides) == sorted(encoder.strides)
        assert len(encoder.stages) >= 4

    def test_every_part_learns_from_images_of_any_size(self) -> None:
        network = self.network().train()
        output = network(torch.rand(2, 3, 53, 70, generator=torch.Generator().manual_seed(1)))
        assert output.logits.shape == (2, 6, 53, 70)
        (output.logits.square().mean() + output.image_logits.square().mean()).backward()
        silent = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
        assert not silent

    def test_the_exported_graph_gives_its_logits_at_any_size(self) -> None:
        network = self.network()
        model = export_graph(network, embedding=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        generator = torch.Generator().manual_seed(2)
        for batch, height, width in ((1, 64, 96), (2, 97, 133)):
            images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
            mean, std = (torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            with torch.no_grad():
                normalized = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
                expected = network(normalized).logits.numpy()
                maps = network.features(network.pad(normalized))
                vectors = torch.cat([each.mean(dim=(2, 3)) for each in maps], dim=1).numpy()
            logits, embedding = session.run(["logits", "embedding"], {"image": images.numpy()})
            assert abs(logits - expected).max() <= 1e-3 * abs(expected).max()
            assert abs(embedding - vectors).max() <= 1e-3 * abs(vectors).max()
