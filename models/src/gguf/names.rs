//! Maps the tensors of a GGUF file to a network's tensors.
//!
//! llama.cpp keeps the rows of Qwen's matrices as they are. Of the vision tower it stores the
//! two frames of the first layer apart and, of Qwen2.5-VL, queries, keys and values.

use std::collections::BTreeSet;

use super::header::Header;

/// What a tensor of a file is to one of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Whole,
    /// One of three that lie below each other: queries, keys, values.
    Rows(usize),
    /// One of two frames.
    Frame(usize),
}

/// How vision towers differ in their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tower {
    /// Of Qwen3-VL, not Qwen2.5-VL.
    pub(super) newer: bool,
    /// Blocks whose output goes to the language model, in order.
    pub(super) deepstack: Vec<usize>,
    /// Early files have the two outer matrices of each block under each other's name.
    swapped: bool,
}

impl Tower {
    /// Of a vision tower's file.
    pub(super) fn of(header: &Header) -> Self {
        let block = |name: &str| {
            name.strip_prefix("v.deepstack.")?
                .split('.')
                .next()?
                .parse()
                .ok()
        };
        let names = header.tensors().map(|(name, _)| name);
        let blocks: BTreeSet<usize> = names.filter_map(block).collect();
        let width = |name: &str| header.tensor(name)?.shape.last().copied();
        let hidden = width("v.blk.0.attn_out.weight");
        let down = width("v.blk.0.ffn_down.weight");
        Self {
            newer: projector(header).contains("qwen3"),
            deepstack: blocks.into_iter().collect(),
            swapped: down.is_some() && down == hidden && width("v.blk.0.ffn_up.weight") != hidden,
        }
    }

    /// The name in the network, as Hugging Face's checkpoints have it, and what it is to that.
    pub(super) fn tensor(&self, name: &str) -> Option<(String, Part)> {
        let pick =
            |older: &'static str, newer: &'static str| if self.newer { newer } else { older };
        let whole = |name: String| Some((format!("model.visual.{name}"), Part::Whole));
        match name {
            "v.patch_embd.weight" | "v.patch_embd.weight.1" => {
                let frame = usize::from(name.ends_with(".1"));
                let name = "model.visual.patch_embed.proj.weight";
                return Some((name.into(), Part::Frame(frame)));
            }
            "v.patch_embd.bias" => return whole("patch_embed.proj.bias".into()),
            "v.position_embd.weight" => return whole("pos_embed.weight".into()),
            _ => {}
        }
        if let Some(suffix) = name.strip_prefix("v.post_ln.") {
            return whole(format!("merger.{}.{suffix}", pick("ln_q", "norm")));
        }
        if let Some(suffix) = name.strip_prefix("mm.0.") {
            return whole(format!("merger.{}.{suffix}", pick("mlp.0", "linear_fc1")));
        }
        if let Some(suffix) = name.strip_prefix("mm.2.") {
            return whole(format!("merger.{}.{suffix}", pick("mlp.2", "linear_fc2")));
        }
        if let Some(rest) = name.strip_prefix("v.deepstack.") {
            let (block, part, suffix) = split(rest)?;
            let place = self.deepstack.iter().position(|own| *own == block)?;
            let part = match part {
                "norm" => "norm",
                "fc1" => "linear_fc1",
                "fc2" => "linear_fc2",
                _ => return None,
            };
            return whole(format!("deepstack_merger_list.{place}.{part}.{suffix}"));
        }
        let (block, part, suffix) = split(name.strip_prefix("v.blk.")?)?;
        let own = match part {
            "ln1" => "norm1",
            "ln2" => "norm2",
            "attn_out" => "attn.proj",
            "attn_qkv" | "attn_q" | "attn_k" | "attn_v" => "attn.qkv",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" | "ffn_down" if (part == "ffn_up") == self.swapped => {
                pick("mlp.down_proj", "mlp.linear_fc2")
            }
            "ffn_up" | "ffn_down" => pick("mlp.up_proj", "mlp.linear_fc1"),
            _ => return None,
        };
        let part = match part {
            "attn_q" => Part::Rows(0),
            "attn_k" => Part::Rows(1),
            "attn_v" => Part::Rows(2),
            _ => Part::Whole,
        };
        Some((format!("model.visual.blocks.{block}.{own}.{suffix}"), part))
    }
}

/// What a vision tower's file calls its projector, such as `qwen2.5vl_merger`.
pub(super) fn projector(header: &Header) -> &str {
    let keys = ["clip.projector_type", "clip.vision.projector_type"];
    let mut found = keys.iter().filter_map(|key| header.text(key));
    found.next().unwrap_or_default()
}

/// As [`Tower::tensor`], of the language model, whose tensors are all whole.
pub(super) fn text_tensor(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.language_model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.language_model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, part, suffix) = split(name.strip_prefix("blk.")?)?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!(
        "model.language_model.layers.{layer}.{part}.{suffix}"
    ))
}

/// `3.attn_q.weight` as the number, the part, and what it is of the part.
fn split(rest: &str) -> Option<(usize, &str, &str)> {
    let (number, rest) = rest.split_once('.')?;
    let (part, suffix) = rest.split_once('.')?;
    Some((number.parse().ok()?, part, suffix))
}
