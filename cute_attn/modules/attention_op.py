"""MaxText's attention operation as a PyTorch module: kinds of layers, modes of a model, caches."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..checks import check_flag, check_scale, check_softcap, takes_keywords_of
from ..elsewhere import KEYWORDS_OF_LAYERS
from ..kinds import is_number
from ..mask.checks import check_number, shown
from ..mask.source import MaskSource
from ..ops.attention_op import attention
from ..ops.chosen import chosen_mask
from . import checks
from .attention_type import AUTOREGRESSIVE, PREFILL, TRAIN, AttentionType, check_mode, check_type, reach_of
from .normalize import normalize_attention, normalize_cudnn_attention
from .paged import attend_cache, attend_pages, check_pages, reads_cache
from .quantize import KVQuant, KVTensor

__all__ = ["AttentionOp"]

Tensor = torch.Tensor
Partial = tuple[Tensor, Tensor, Tensor]  # out, lse, max_logits (empty if not asked for)


class AttentionOp(torch.nn.Module):
    """Attention of a layer, given its queries, keys and values; it has no parameters.

    Args:
        num_query_heads, num_kv_heads: of query, and of key and value; the first a multiple of the second.
        attention_type: an AttentionType or its value: "global" (causal), "full", "local_sliding", "chunk", "mla".
        attn_logits_soft_cap: c > 0 makes every score `c * tanh(score / c)`; None or 0 is off.
        sliding_window_size: w >= 1 for "local_sliding", the number of keys kept: `q - w < k <= q`. Not looked at for
            other types, as is chunk_attn_window_size.
        chunk_attn_window_size: keys of a chunk for "chunk", which is causal within each.
        moba_chunk_size, moba_topk: with both set, each row and head attends its own block of moba_chunk_size keys and
            the moba_topk - 1 earlier ones whose mean key has the largest product with its query.
        scale: of scores. 1: the query comes scaled.
        kv_quant: how the KVTensors that will come are quantised, checked against them; None takes any.
        use_ragged_attention, ragged_block_size: hints that change nothing.
        dropout_rate: 0.

    Raises TypeError or ValueError naming the argument.
    """

    normalize_attention: ClassVar[Any] = staticmethod(normalize_attention)
    normalize_cudnn_attention: ClassVar[Any] = staticmethod(normalize_cudnn_attention)

    @takes_keywords_of(KEYWORDS_OF_LAYERS)
    def __init__(
        self,
        num_query_heads: int,
        num_kv_heads: int,
        *,
        attention_type: AttentionType | str = AttentionType.GLOBAL,
        attn_logits_soft_cap: float | None = None,
        sliding_window_size: int | None = None,
        chunk_attn_window_size: int | None = None,
        moba_chunk_size: int | None = None,
        moba_topk: int | None = None,
        scale: float = 1.0,
        kv_quant: KVQuant | None = None,
        use_ragged_attention: bool = False,
        ragged_block_size: int = 256,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_query_heads = check_number("num_query_heads", num_query_heads, 1)
        self.num_kv_heads = check_number("num_kv_heads", num_kv_heads, 1)
        if self.num_query_heads % self.num_kv_heads:
            raise ValueError(
                f"num_query_heads must be a multiple of num_kv_heads = {num_kv_heads}, got {num_query_heads}"
            )
        self.attention_type = check_type(attention_type)
        self.attn_logits_soft_cap = _soft_cap(attn_logits_soft_cap)
        self.reach = reach_of(self.attention_type, sliding_window_size, chunk_attn_window_size)
        self.moba = _moba(moba_chunk_size, moba_topk)
        if scale is None:
            raise TypeError("scale must be a number, got None; 1.0 takes the query as it comes, scaled")
        try:
            self.scale = check_scale(scale, 1)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("softmax_scale", "scale")) from None
        if kv_quant is not None and not isinstance(kv_quant, KVQuant):
            raise TypeError(f"kv_quant must be None or a KVQuant, got {shown(kv_quant)}")
        self.kv_quant = kv_quant
        check_flag("use_ragged_attention", use_ragged_attention)
        self.use_ragged_attention = use_ragged_attention
        self.ragged_block_size = check_number("ragged_block_size", ragged_block_size, 1)
        if not is_number(dropout_rate):
            raise TypeError(f"dropout_rate must be 0, got {shown(dropout_rate)}")
        if dropout_rate != 0:
            raise ValueError(f"dropout_rate is not supported: it must be 0, got {dropout_rate}")

    def extra_repr(self) -> str:
        numbers = {
            "attn_logits_soft_cap": self.attn_logits_soft_cap or None,
            "sliding_window_size": self.reach.left + 1 or None,
            "chunk_attn_window_size": self.reach.chunk or None,
            "moba_chunk_size": self.moba and self.moba[0],
            "moba_topk": self.moba and self.moba[1],
            "scale": None if self.scale == 1.0 else self.scale,
            "kv_quant": self.kv_quant,
        }
        shown_numbers = "".join(f", {name}={value}" for name, value in numbers.items() if value is not None)
        heads = f"{self.num_query_heads}, {self.num_kv_heads}"
        return f"{heads}, attention_type={self.attention_type.value!r}{shown_numbers}"

    def forward(
        self,
        query: Tensor,
        key: Tensor | KVTensor | None,
        value: Tensor | KVTensor | None,
        decoder_segment_ids: Tensor | None = None,
        inputs_positions: Tensor | None = None,
        model_mode: str = TRAIN,
        cached_values: Any = None,
        previous_chunk: Tensor | int | None = None,
        bidirectional_mask: Tensor | None = None,
        sinks: Tensor | None = None,
        indexer_mask: Tensor | None = None,
        slot: None = None,
        page_state: Any = None,
        record_max_logits: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of `query` `(b, t, num_query_heads, d)`.

        Args:
            key, value: `(b, s, num_kv_heads, d)` and `(b, s, num_kv_heads, dv)`, of query's dtype, or KVTensors.
                Ignored, as are decoder_segment_ids, where cached_values hold the keys.
            decoder_segment_ids: integers `(b, s)`; a row attends the keys of its own id, in mode "autoregressive" those
                of id 1.
            inputs_positions: changes nothing.
            model_mode: "train" or "prefill", row i at key `p + i` (see previous_chunk), or "autoregressive", the last
                row at the last key.
            cached_values: None, or `[(key, value, segment_ids), None]`: the keys to attend; or in mode "autoregressive"
                `[(key, value, segment_ids), (key, value, segment_ids, lengths)]`, a prompt and what was decoded since:
                prefill key j stands at position j, decoded key j at `n_active + j`, the last row at `n_active + lengths
                - 1`, where n_active is the number of prefill keys of id 1, which come first (all without ids). lengths:
                an int, integers `(b,)`, or None for the number of decoded keys of id 1. Nothing is written to a cache.
            previous_chunk: p, the keys before the first row, or a tensor `(b, p, ...)`.
            bidirectional_mask: zeros and ones `(b, s)`: each run of ones attends all of itself, besides what it attends
                anyway; a run is cut where the segment id changes.
            sinks: floating `(num_query_heads,)`, one more logit a head without a value; with two caches it joins the
                first.
            indexer_mask: `(b, t, s)`, over both caches `(b, t, s + s')`: bools, or numbers that keep a pair where they
                are at least -1.
            slot: None.
            page_state: None, or in mode "autoregressive" an object with page_map, integers `(b, max_pages)`, and
                sequence_lengths, integers `(b,)`, the keys that there are. The cache is then pools of pages,
                `cached_values=[(key, value, None), None]`, `(num_pages, page_size, num_kv_heads, d or dv)`, and the
                last row stands at the last key. There is no gradient, and none of "chunk", MoBA, indexer_mask and
                record_max_logits. See `flash_attn_with_kvcache`.
            record_max_logits: whether to return max_logits.

        Returns out `(b, t, num_query_heads, dv)` in query's dtype; with record_max_logits `(out, max_logits)`, the
        largest attended score of each batch element and head after scale, cap and masks and before sinks, `(b,
        num_query_heads)` in the dtype of the scores, without gradient. A row that attends nothing has out 0.

        Gradients are bitwise equal from run to run under `torch.use_deterministic_algorithms(True)`.

        Raises TypeError or ValueError naming the argument, NotImplementedError for what the backend cannot do.
        """
        check_mode(model_mode)
        check_flag("record_max_logits", record_max_logits)
        checks.check_page_state(page_state, slot)
        prompt, decoded = checks.check_caches(cached_values)
        self._check_mode_of_caches(model_mode, prompt, decoded)
        if page_state is not None:
            pools = check_pages(self, model_mode, prompt, decoded, indexer_mask, record_max_logits)
            self._refuse_with_cache(previous_chunk, bidirectional_mask)
            return attend_pages(self, query, pools, page_state, sinks)
        if prompt is None:
            single = checks.Cache("", key, value, decoder_segment_ids)  # type: ignore[arg-type]
        else:
            single = prompt
        if decoded is None:
            out, _, max_logits = self._over_one(
                query,
                single,
                None,
                previous_chunk,
                bidirectional_mask,
                sinks,
                indexer_mask,
                model_mode=model_mode,
                record_max_logits=record_max_logits,
            )
        else:
            self._refuse_with_cache(previous_chunk, bidirectional_mask)
            out, max_logits = self._over_two(query, single, decoded, sinks, indexer_mask, record_max_logits)
        return (out, max_logits) if record_max_logits else out

    def apply_attention(
        self,
        query: Tensor,
        key: Tensor | KVTensor,
        value: Tensor | KVTensor,
        decoder_segment_ids: Tensor | None = None,
        segment_positions: Tensor | None = None,
        lengths: Tensor | int | None = None,
        model_mode: str = TRAIN,
        use_ragged_attention: bool = False,
        previous_chunk: Tensor | int | None = None,
        bidirectional_mask: Tensor | None = None,
        sinks: Tensor | None = None,
        indexer_mask: Tensor | None = None,
        record_max_logits: bool = False,
    ) -> tuple[Tensor, ...]:
        """A partial result over some keys, to be merged with others by `normalize_attention`.

        Args: as of `forward`, and
            lengths: in mode "autoregressive" the keys that there are, an int or integers `(b,)`: those beyond are not
                attended, and the last row stands at the last one. None for all.
            segment_positions, use_ragged_attention: change nothing.

        Returns o `(b, t, heads, dv)`, m and l `(b, t, heads, 1)` for which `o e^m` and `l e^m` are the sums of the
        values and of 1, weighted by `e^score`; for a row that attends nothing o = 0, m = -inf, l = 0. With
        record_max_logits also max_logits.
        """
        check_mode(model_mode)
        check_flag("record_max_logits", record_max_logits)
        check_flag("use_ragged_attention", use_ragged_attention)
        if lengths is not None and model_mode != AUTOREGRESSIVE:
            raise ValueError(f"lengths must be None in model_mode {model_mode!r}: it says how much a cache holds")
        out, lse, max_logits = self._over_one(
            query,
            checks.Cache("", key, value, decoder_segment_ids),
            lengths,
            previous_chunk,
            bidirectional_mask,
            sinks,
            indexer_mask,
            model_mode=model_mode,
            record_max_logits=record_max_logits,
        )
        largest = lse.transpose(1, 2)[..., None]
        partial = out, largest, (largest != -torch.inf).to(lse.dtype)
        return (*partial, max_logits) if record_max_logits else partial

    # ---------------------------------------------------------------- which keys

    def _over_one(
        self,
        query: Tensor,
        cache: checks.Cache,
        lengths: Tensor | int | None,
        previous_chunk: Tensor | int | None,
        bidirectional_mask: Tensor | None,
        sinks: Tensor | None,
        indexer_mask: Tensor | None,
        *,
        model_mode: str,
        record_max_logits: bool,
    ) -> Partial:
        """Attention over one list of keys; lengths as of `apply_attention`."""
        if model_mode == AUTOREGRESSIVE and reads_cache(self, query, cache, indexer_mask, record_max_logits):
            self._refuse_with_cache(previous_chunk, bidirectional_mask)
            if lengths is not None:
                lengths = checks.check_cache_lengths("lengths", lengths, len(query), cache.key.shape[1], query.device)
            out, lse = attend_cache(self, query, cache, lengths, sinks)
            return out, lse, lse.new_empty(0)
        key, value = self._keys(query, cache)
        batch, rows, keys = query.shape[0], query.shape[1], key.shape[1]
        ids = cache.segment_ids
        ids_name = f"segment_ids of {cache.name}" if cache.name else "decoder_segment_ids"
        if ids is not None:
            checks.check_tokens(ids_name, ids, batch, keys)
        if indexer_mask is not None:
            checks.check_indexer_mask(indexer_mask, query, keys)
        if model_mode == AUTOREGRESSIVE:
            self._refuse_with_cache(previous_chunk, bidirectional_mask)
            if lengths is None:
                source = self._source("active", ids, offset=keys - rows)
            else:
                self._refuse_moba("lengths")
                lengths = checks.check_cache_lengths("lengths", lengths, batch, keys, query.device)
                source = self._source("decode", None, ids, lengths)
        else:
            first = checks.check_previous(previous_chunk, batch)
            if bidirectional_mask is not None:
                checks.check_tokens("bidirectional_mask", bidirectional_mask, batch, keys, takes_bools=True)
            if (ids is not None or bidirectional_mask is not None) and keys < first + rows:
                name = "bidirectional_mask" if ids is None else ids_name
                raise ValueError(
                    f"{name} must cover every query, those at {first} to {first + rows - 1} (previous_chunk and "
                    f"{rows} queries), got {keys} keys"
                )
            source = self._source("tokens", ids, bidirectional_mask, offset=first)
        return self._attend(query, key, value, source, sinks, indexer_mask, record_max_logits)

    def _over_two(
        self,
        query: Tensor,
        prompt: checks.Cache,
        decoded: checks.Cache,
        sinks: Tensor | None,
        indexer_mask: Tensor | None,
        record_max_logits: bool,
    ) -> tuple[Tensor, Tensor]:
        """Attention over a prompt and over what was decoded since, merged."""
        self._refuse_moba("two caches in cached_values")
        pairs = [self._keys(query, cache) for cache in (prompt, decoded)]
        batch, sizes = query.shape[0], [key.shape[1] for key, _ in pairs]
        if pairs[0][1].shape[3] != pairs[1][1].shape[3]:
            dims = f"{pairs[0][1].shape[3]} and {pairs[1][1].shape[3]}"
            raise ValueError(f"the values of cached_values must have one head_dim, got {dims}")
        for cache, size in zip((prompt, decoded), sizes, strict=True):
            if cache.segment_ids is not None:
                checks.check_tokens(f"segment_ids of {cache.name}", cache.segment_ids, batch, size)
        lengths = decoded.lengths
        if lengths is not None:
            lengths = checks.check_cache_lengths("lengths of cached_values[1]", lengths, batch, sizes[1], query.device)
        kept: tuple[Tensor | None, ...] = (None, None)
        if indexer_mask is not None:
            checks.check_indexer_mask(indexer_mask, query, sum(sizes))
            kept = indexer_mask.split(sizes, 2)
        outs, stats, largest = [], [], []
        for index, kind in enumerate(("prefill", "decode")):
            source = self._source(kind, prompt.segment_ids, decoded.segment_ids, lengths, offset=sizes[1 - index])
            extra = sinks if index == 0 else None
            out, lse, max_logits = self._attend(query, *pairs[index], source, extra, kept[index], record_max_logits)
            outs.append(out)
            stats.append(lse)
            largest.append(max_logits)
        return normalize_cudnn_attention(outs, stats), torch.maximum(*largest)

    def _source(
        self,
        kind: str,
        first: Tensor | None = None,
        second: Tensor | None = None,
        third: Tensor | None = None,
        offset: int = 0,
    ) -> MaskSource:
        left, right, chunk = self.reach
        return MaskSource(kind, first, second, third, left, right, chunk=chunk, offset=offset)

    def _keys(self, query: Tensor, cache: checks.Cache) -> tuple[Tensor, Tensor]:
        """Checked keys and values of a cache, or those of the call."""
        names = cache.names
        checks.check_is_tensor("query", query)
        pair = [
            checks.plain(name, x, query, self.kv_quant) for name, x in zip(names, (cache.key, cache.value), strict=True)
        ]
        checks.check_qkv(query, list(zip(names, pair, strict=True)))
        checks.check_heads(query, names[0], pair[0], self.num_query_heads, self.num_kv_heads)
        return pair[0], pair[1]

    # ---------------------------------------------------------------- attention

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        source: MaskSource,
        sinks: Tensor | None,
        indexer_mask: Tensor | None,
        record_max_logits: bool,
    ) -> Partial:
        extra = checks.check_sinks(sinks, query)
        mask: Any = source
        if query.shape[0] == 0:
            mask = source._replace(first=None, second=None, third=None)  # a mask has a plane at least
        elif self.moba is not None or indexer_mask is not None:
            mask = chosen_mask(source, query, key, self.moba, indexer_mask)
        deterministic = torch.are_deterministic_algorithms_enabled()
        cap = self.attn_logits_soft_cap
        return attention(query, key, value, extra, mask, self.scale, cap, deterministic, 0, record_max_logits)

    # ---------------------------------------------------------------- what does not go together

    def _check_mode_of_caches(self, model_mode: str, prompt: checks.Cache | None, decoded: checks.Cache | None) -> None:
        if model_mode == TRAIN and (prompt is not None or decoded is not None):
            raise ValueError("cached_values must be None in model_mode 'train', got a cache")
        if decoded is not None and prompt is None:
            raise ValueError("cached_values[0] must be a cache where cached_values[1] is one, got None")
        if decoded is not None and model_mode == PREFILL:
            raise ValueError("cached_values[1] must be None in model_mode 'prefill', got a cache")

    def _refuse_with_cache(self, previous_chunk: object, bidirectional_mask: object) -> None:
        for name, x in (("previous_chunk", previous_chunk), ("bidirectional_mask", bidirectional_mask)):
            if x is not None:
                raise ValueError(f"{name} must be None in model_mode 'autoregressive', got {shown(x)}")

    def _refuse_moba(self, what: str) -> None:
        if self.moba is not None:
            raise ValueError(
                f"moba_chunk_size must be None with {what}: its blocks are those of one list of keys; "
                f"got {self.moba[0]}"
            )


def _soft_cap(value: float | None) -> float:
    """0 for off."""
    if value is None:
        return 0.0
    try:
        return check_softcap(value)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("softcap", "attn_logits_soft_cap")) from None


def _moba(chunk_size: int | None, top_k: int | None) -> tuple[int, int] | None:
    if chunk_size is None and top_k is None:
        return None
    if chunk_size is None or top_k is None:
        raise ValueError(
            f"moba_chunk_size and moba_topk must both be set or both be None, got {chunk_size!r} and {top_k!r}"
        )
    return check_number("moba_chunk_size", chunk_size, 1), check_number("moba_topk", top_k, 1)
