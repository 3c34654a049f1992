"""Mllama's inputs with every image encoded once, however many questions of a batch are about it.

The vision tower and the projector run on the distinct images; `forward(cross_attention_states=...)` takes their
output in place of pixels. An image of T tiles (padded to the tower's number of tiles) gives states (T, P, H): P
patches and H text width. The last images' states are kept for the questions that follow.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from align.images import open_image

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

KEPT_BYTES = 2 << 30
"""Of states kept for the questions that follow; those of the batch at hand are needed whatever they take."""
ENCODED_TOGETHER = 8
"""Images in one pass of the vision tower."""


class MllamaInputs:
    """Makes generate's inputs for prompts with one image each."""

    def __init__(self, model: "PreTrainedModel", processor: "ProcessorMixin", keep: int) -> None:
        self._model = model
        self._processor = processor
        self._keep = keep
        self._states: OrderedDict[str, tuple[Tensor, int]] = OrderedDict()
        self.encoded = 0  # images that went through the tower

    def __call__(self, texts: list[str], paths: list[str], add_special_tokens: bool) -> dict[str, Any]:
        """input_ids and attention_mask (B, L) left-padded, cross_attention_mask (B, L, 1, T), cross_attention_states
        (B * T, P, H). Raises BadImage."""
        import torch
        from transformers.models.mllama import processing_mllama as mllama

        self._encode(list(dict.fromkeys(paths)))
        processor, device = self._processor, self._model.device
        texts = [mllama.build_string_from_input(t, processor.bos_token, processor.image_token) for t in texts]
        tokens = processor.tokenizer(
            texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=add_special_tokens
        )
        spans = [mllama.get_cross_attention_token_mask(i, processor.image_token_id) for i in tokens.input_ids.tolist()]
        states = [self._states[path] for path in paths]
        mask = mllama.convert_sparse_cross_attention_mask_to_dense(
            spans,
            num_tiles=[[tiles] for _, tiles in states],
            max_num_tiles=processor.image_processor.max_image_tiles,
            length=tokens.input_ids.shape[1],
        )
        held = sum(state.nbytes for state, _ in self._states.values())
        while self._states and (len(self._states) > self._keep or held > KEPT_BYTES):
            held -= self._states.popitem(last=False)[1][0].nbytes
        return {
            "input_ids": tokens.input_ids.to(device),
            "attention_mask": tokens.attention_mask.to(device),
            "cross_attention_mask": torch.from_numpy(mask).to(device),
            "cross_attention_states": torch.cat([state for state, _ in states]),
        }

    def _encode(self, paths: list[str]) -> None:
        import torch

        for path in paths:
            if path in self._states:
                self._states.move_to_end(path)
        new = [path for path in paths if path not in self._states]
        inner = self._model.model
        for start in range(0, len(new), ENCODED_TOGETHER):
            some = new[start : start + ENCODED_TOGETHER]
            pixels = self._processor.image_processor([[open_image(path)] for path in some], return_tensors="pt")
            counts = pixels.pop("num_tiles")
            with torch.no_grad():
                seen = inner.vision_model(
                    pixel_values=pixels["pixel_values"].to(self._model.device, self._model.dtype),
                    aspect_ratio_ids=pixels["aspect_ratio_ids"].to(self._model.device),
                    aspect_ratio_mask=pixels["aspect_ratio_mask"].to(self._model.device),
                ).last_hidden_state
                states = inner.multi_modal_projector(seen)
            states = states.reshape(len(some), -1, seen.shape[-2], states.shape[-1])
            for path, state, count in zip(some, states, counts, strict=True):
                self._states[path] = (state.clone(), int(count[0]))  # a view would hold all of the pass in memory
            self.encoded += len(some)
