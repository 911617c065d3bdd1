//! From 16 bits to 32.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Writes `values` to `wide`, of one length.
///
/// The library's own conversion calls a function for each eight values, which takes longer
/// than the products that follow.
pub(super) fn widen(values: &[f16], wide: &mut [f32]) {
    assert_eq!(values.len(), wide.len(), "room for each value");
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            unsafe { widen_avx512(values, wide) };
            return;
        }
        if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the instructions.
            unsafe { widen_f16c(values, wide) };
            return;
        }
    }
    values.convert_to_f32_slice(wide);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_avx512(values: &[f16], wide: &mut [f32]) {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
    let (blocks, rest) = values.as_chunks::<16>();
    let (wide_blocks, wide_rest) = wide.as_chunks_mut::<16>();
    for (block, wide) in blocks.iter().zip(wide_blocks) {
        // SAFETY: a block is 32 bytes long, and what it becomes 64.
        unsafe {
            let register = _mm256_loadu_si256(block.as_ptr().cast());
            _mm512_storeu_ps(wide.as_mut_ptr(), _mm512_cvtph_ps(register));
        }
    }
    rest.convert_to_f32_slice(wide_rest);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(values: &[f16], wide: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (blocks, rest) = values.as_chunks::<8>();
    let (wide_blocks, wide_rest) = wide.as_chunks_mut::<8>();
    for (block, wide) in blocks.iter().zip(wide_blocks) {
        // SAFETY: a block is 16 bytes long, and what it becomes 32.
        unsafe {
            let register = _mm_loadu_si128(block.as_ptr().cast());
            _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(register));
        }
    }
    rest.convert_to_f32_slice(wide_rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_16_bits_becomes_itself() {
        let values: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let check = |widen: &dyn Fn(&[f16], &mut [f32])| {
            for values in [&values[..], &values[3..40], &values[..5], &[]] {
                let mut wide = vec![0.0; values.len()];
                widen(values, &mut wide);
                for (value, wide) in values.iter().zip(wide) {
                    let expected = value.to_f32();
                    let same = wide.to_bits() == expected.to_bits();
                    assert!(same || (wide.is_nan() && expected.is_nan()), "{value}");
                }
            }
        };
        check(&widen);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the instructions.
            check(&|values, wide| unsafe { widen_f16c(values, wide) });
        }
    }
}
