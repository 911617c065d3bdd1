//! The embedding table, which is only looked up: nothing is gained by widening what the files
//! have in few bytes.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};

use crate::quantized::stored::Blocks;

/// The vectors of all tokens.
pub(crate) struct Table {
    rows: Rows,
    /// Tokens.
    n: usize,
    /// What vectors are given in.
    dtype: DType,
    device: Device,
}

enum Rows {
    /// `[n, hidden]`, of `dtype` or a type that it holds.
    Floats(Tensor),
    Blocks(BlockRows),
}

/// Rows of ggml's blocks, on the processor.
pub(crate) struct BlockRows {
    pub(crate) format: GgmlDType,
    pub(crate) bytes: Vec<u8>,
    pub(crate) n: usize,
    pub(crate) width: usize,
}

impl Table {
    /// Of floats `[n, hidden]`, to be given in `dtype`.
    pub(crate) fn of_floats(rows: Tensor, n: usize, dtype: DType) -> Self {
        Self {
            n,
            dtype,
            device: rows.device().clone(),
            rows: Rows::Floats(rows),
        }
    }

    /// Of blocks, on the processor, to be given in `dtype`.
    pub(crate) fn of_blocks(rows: BlockRows, dtype: DType) -> Self {
        Self {
            n: rows.n,
            dtype,
            device: Device::Cpu,
            rows: Rows::Blocks(rows),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The vectors of token ids: `[ids, hidden]`.
    ///
    /// # Errors
    /// An id is beyond the vocabulary.
    pub(crate) fn look_up(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.n) {
            candle_core::bail!("token {id} is beyond the {} known", self.n)
        }
        let rows = match &self.rows {
            Rows::Floats(rows) => {
                let ids = Tensor::from_slice(ids, ids.len(), &self.device)?;
                rows.index_select(&ids, 0)?
            }
            Rows::Blocks(rows) => rows.gather(ids)?,
        };
        rows.to_dtype(self.dtype)
    }
}

impl BlockRows {
    /// In 32 bits.
    fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        let n_row_bytes = self.bytes.len() / self.n.max(1);
        let mut bytes = Vec::with_capacity(ids.len() * n_row_bytes);
        for &id in ids {
            bytes.extend_from_slice(&self.bytes[id as usize * n_row_bytes..][..n_row_bytes]);
        }
        if ids.is_empty() {
            return Tensor::zeros((0, self.width), DType::F32, &Device::Cpu);
        }
        Blocks::new(self.format, &bytes, [ids.len(), self.width])?.dequantize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantized::stored::tests::blocks;

    #[test]
    fn rows_of_blocks_are_those_of_the_whole_table() {
        for format in [GgmlDType::Q8_0, GgmlDType::Q4K] {
            let (n, width) = (7, 256);
            let bytes = blocks(format, n * width / format.block_size(), 3);
            let whole = Blocks::new(format, &bytes, [n, width]).unwrap();
            let whole = whole.dequantize().unwrap();
            let rows = BlockRows {
                format,
                bytes,
                n,
                width,
            };
            let table = Table::of_blocks(rows, DType::F32);
            let ids = [6, 0, 3, 3];
            let expected = whole.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0);
            let expected = expected.unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(
                table.look_up(&ids).unwrap().to_vec2::<f32>().unwrap(),
                expected
            );
            assert_eq!(table.look_up(&[]).unwrap().dims(), [0, width]);
            let error = table.look_up(&[7]).unwrap_err().to_string();
            assert!(error.contains("token 7 is beyond the 7 known"), "{error}");
        }
    }

    #[test]
    fn narrow_floats_are_widened_when_they_are_looked_up() {
        let rows = Tensor::new(&[[1.5_f32, -2.0], [0.25, 8.0]], &Device::Cpu).unwrap();
        let table = Table::of_floats(rows.to_dtype(DType::BF16).unwrap(), 2, DType::F32);
        let found = table.look_up(&[1, 0]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, [[0.25, 8.0], [1.5, -2.0]]);
    }
}
