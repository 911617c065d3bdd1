//! Selects the device and the number type that a network computes in.

use std::fmt;
use std::str::FromStr;

use crate::error::ModelError;

/// The device a model is loaded on. One device belongs to one thread: candle queues a
/// CUDA device's work on the stream of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The processor, always there.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number, with the crate feature `cuda`.
    Cuda(usize),
    /// The GPU of an Apple machine, with the crate feature `metal`.
    Metal,
}

impl FromStr for Device {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let unknown = || ModelError::UnknownDevice {
            found: name.to_owned(),
        };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            None if name == "metal" => Ok(Self::Metal),
            None if name == "auto" => Ok(Self::best()),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
            Self::Metal => formatter.write_str("metal"),
        }
    }
}

impl Device {
    /// The device that this build and this machine have: a GPU, or else the processor. A build
    /// for a GPU says in one line of the log why it falls back.
    pub fn best() -> Self {
        let wanted = if cfg!(feature = "cuda") {
            Self::Cuda(0)
        } else if cfg!(feature = "metal") {
            Self::Metal
        } else {
            return Self::Cpu;
        };
        match wanted.open() {
            Ok(_) => wanted,
            Err(error) => {
                tracing::warn!("{error}; computing on the processor");
                Self::Cpu
            }
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`ModelError::DeviceUnavailable`] when this build or this machine lacks it.
    pub(crate) fn open(self) -> Result<candle_core::Device, ModelError> {
        let (built_in, feature) = match self {
            Self::Cpu => return Ok(candle_core::Device::Cpu),
            Self::Cuda(_) => (cfg!(feature = "cuda"), "cuda"),
            Self::Metal => (cfg!(feature = "metal"), "metal"),
        };
        let unavailable = |problem: String, feature| ModelError::DeviceUnavailable {
            device: self.to_string(),
            problem,
            feature,
        };
        if !built_in {
            let problem = format!("this build lacks the feature `{feature}`");
            return Err(unavailable(problem, Some(feature)));
        }
        let opened = match self {
            Self::Cuda(number) => candle_core::Device::new_cuda(number),
            _ => candle_core::Device::new_metal(0),
        };
        opened.map_err(|error| unavailable(error.to_string(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_back() {
        for name in ["cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        #[cfg(not(any(feature = "cuda", feature = "metal")))]
        assert_eq!("auto".parse::<Device>().unwrap(), Device::Cpu);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        for name in ["gpu", "cuda:x", "cuda:-1", "", "cpu:0"] {
            assert_eq!(
                name.parse::<Device>().unwrap_err().to_string(),
                format!(
                    "unknown device `{name}`, supported: `auto`, `cpu`, `cuda`, `cuda:<number>`, `metal`"
                )
            );
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_which_feature_brings_it() {
        let error = Device::Cuda(1).open().unwrap_err();
        assert_eq!(
            error.to_string(),
            "device `cuda:1` is not available: this build lacks the feature `cuda`"
        );
        assert_eq!(error.hint(), "build with `--features cuda`, or use `cpu`");
    }
}
