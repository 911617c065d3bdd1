//! Compressed data that is much larger than it looks.

/// Writes bits from the lowest of each byte on, as deflate wants them.
struct Bits {
    bytes: Vec<u8>,
    pending: u64,
    n_pending: u32,
}

impl Bits {
    fn push(&mut self, bits: u32, n: u32) {
        self.pending |= u64::from(bits) << self.n_pending;
        self.n_pending += n;
        while self.n_pending >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.n_pending -= 8;
        }
    }

    /// A Huffman code: its highest bit goes first.
    fn push_code(&mut self, code: u32, n: u32) {
        self.push(code.reverse_bits() >> (32 - n), n);
    }
}

/// `byte`, which is below 144, over and over: `n_bytes` or somewhat fewer, as
/// a zlib stream. 258 of them take 13 bits.
pub(super) fn repeated(byte: u8, n_bytes: u64) -> Vec<u8> {
    const LONGEST_MATCH: u64 = 258;
    let mut bits = Bits {
        bytes: vec![0x78, 0x9c],
        pending: 0,
        n_pending: 0,
    };
    bits.push(0b011, 3); // The last block, in the fixed codes.
    bits.push_code(0x30 + u32::from(byte), 8);
    for _ in 0..n_bytes / LONGEST_MATCH {
        bits.push_code(0b1100_0101, 8); // Copy 258 bytes,
        bits.push_code(0, 5); // from one byte before.
    }
    bits.push_code(0, 7); // The end.
    bits.push(0, 7);
    bits.bytes.extend([0; 4]); // A check sum that nobody waits for.
    bits.bytes
}

/// Compresses once more, or for the first time.
pub(super) fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut stream = lopdf::Stream::new(lopdf::Dictionary::new(), bytes.to_vec());
    // It leaves what does not become smaller as it is; nothing here is so.
    let _ = stream.compress();
    stream.content
}
