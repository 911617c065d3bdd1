//! Attention on the processor in f32, cut into parts and spread over the cores.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::attention::{self, Heads, Inputs, Part, Scratch};
use super::{Mask, Span, check_attention, dense, is_dense};

/// Rows of attention, that is queries times heads of one key head, that one core takes at a
/// time, at most: each tile of keys is copied once for all of them.
const N_ROWS_PER_PART: usize = 512;
/// And at least, unless the span has fewer: a tile in the widest registers.
const MIN_ROWS_PER_PART: usize = 64;
/// Products of attention that are not worth the wait for another core.
const N_PRODUCTS_ALONE: usize = 1 << 19;

/// As [`super::attend`], of f32 tensors.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    mask: Mask,
    scale: f32,
) -> Result<Tensor> {
    // What `cpu_fwd` writes without further checks rests on this one.
    check_attention(q, k, v, spans, mask)?;
    let (k, v) = (dense(k, 2)?, dense(v, 2)?);
    dense(q, 2)?.apply_op3_no_bwd(&k, &v, &Attention { spans, mask, scale })
}

struct Attention<'a> {
    spans: &'a [Span],
    mask: Mask,
    scale: f32,
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let (n, n_heads, head_dim) = q_layout.shape().dims3()?;
        let (_, n_kv_heads, _) = k_layout.shape().dims3()?;
        let inputs = Inputs {
            q: heads(q, q_layout)?,
            k: heads(k, k_layout)?,
            v: heads(v, v_layout)?,
            group: n_heads / n_kv_heads,
            scale: self.scale,
        };
        let width = n_heads * head_dim;
        let mut output: Vec<f32> = Vec::with_capacity(n * width);
        let rows = OutputRows(output.as_mut_ptr());
        let attend = |part: &Part| {
            let store = |query: usize, head: usize, values: &[f32]| {
                // SAFETY: `query < n`, since `check_attention` found that the spans' queries
                // are `0..n`, `head < n_heads`, and `values` has `head_dim` values: the place
                // lies in the buffer. No other part has the same query and head, since spans
                // do not overlap, and neither do the blocks of a span nor the heads of two
                // key heads; and a part stores each of its rows once.
                unsafe { rows.write(query * width + head * head_dim, values) }
            };
            SCRATCH.with_borrow_mut(|scratch| attention::attend(&inputs, part, scratch, store));
        };
        let (parts, n_products) = self.parts(&inputs, n_kv_heads);
        if n_products <= N_PRODUCTS_ALONE {
            parts.iter().for_each(attend);
        } else {
            parts.par_iter().with_max_len(1).for_each(attend);
        }
        // SAFETY: the spans' queries are all of `0..n`, each of which has been stored in
        // every head, and the buffer has room for them.
        unsafe { output.set_len(n * width) };
        Ok((CpuStorage::F32(output), Shape::from((n, width))))
    }
}

/// Where the parts of a call write, each its own places.
struct OutputRows(*mut f32);

// SAFETY: the pointer is used by `write` alone, whose caller sees to it that no two threads
// write to the same place.
unsafe impl Sync for OutputRows {}

impl OutputRows {
    /// # Safety
    /// From `first` on there is room for the values, where nobody else reads or writes.
    unsafe fn write(&self, first: usize, values: &[f32]) {
        // SAFETY: the caller promises that the target is writable and nobody else's; it is
        // memory of its own, so it does not overlap the values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0.add(first), values.len()) }
    }
}

impl Attention<'_> {
    /// What the cores are to do, and how many products that takes.
    fn parts(&self, inputs: &Inputs<'_>, n_kv_heads: usize) -> (Vec<Part>, usize) {
        let n_queries: usize = self.spans.iter().map(|span| span.queries.len()).sum();
        // Several parts for each core, so that none waits long for the last one.
        let n_rows = n_queries * inputs.group * n_kv_heads / (4 * rayon::current_num_threads());
        let n_rows = n_rows
            .next_multiple_of(MIN_ROWS_PER_PART)
            .clamp(MIN_ROWS_PER_PART, N_ROWS_PER_PART);
        let n_at_once = (n_rows / inputs.group).max(1);
        let causal = self.mask == Mask::Causal;
        let mut parts = Vec::new();
        let mut n_products = 0;
        for Span { queries, keys } in self.spans {
            n_products += queries.len() * keys.len() * inputs.q.head_dim * n_kv_heads;
            // The last queries of a causal span see the most keys, so they go first.
            for first in (0..queries.len()).step_by(n_at_once).rev() {
                let last = queries.len().min(first + n_at_once);
                let n_seen = if causal {
                    keys.len() - queries.len() + first + 1
                } else {
                    keys.len()
                };
                parts.extend((0..n_kv_heads).map(|kv_head| Part {
                    queries: queries.start + first..queries.start + last,
                    keys: keys.clone(),
                    n_seen,
                    causal,
                    kv_head,
                }));
            }
        }
        (parts, n_products * inputs.group)
    }
}

/// A tensor `[rows, heads, head_dim]` whose last dimension has no gaps.
fn heads<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Heads<'a>> {
    let &[row_stride, head_stride, _] = layout.stride() else {
        bail!("rows of heads have three dimensions")
    };
    if !is_dense(layout, 2) {
        bail!("there are gaps within a head")
    }
    let (_, _, head_dim) = layout.shape().dims3()?;
    Ok(Heads {
        values: &storage.as_slice::<f32>()?[layout.start_offset()..],
        row_stride,
        head_stride,
        head_dim,
    })
}
