//! What the ring is not to use although the kernel has it: the environment variable UPCALL_MASK. It simulates older kernels
//! for tests, and turns off what a kernel turned out to do wrong. A mask changes how operations are done, never what they
//! mean.

use super::setup::{LADDER, Rung};
use crate::op::{self, KINDS, Refusal};
use io_uring::squeue::Entry;
use io_uring::{opcode, types};

/// Parts of the ring that can be masked, with the names that UPCALL_MASK knows them by.
const FEATURES: [(&str, Feature); 11] = [
    ("multishot", Feature::Multishot),
    ("buffer_rings", Feature::BufferRings),
    ("bundles", Feature::Bundles),
    ("zerocopy", Feature::Zerocopy),
    ("registered_buffers", Feature::RegisteredBuffers),
    ("ext_arg", Feature::ExtArg),
    ("defer_taskrun", Feature::DeferTaskrun),
    ("coop_taskrun", Feature::CoopTaskrun),
    ("no_sqarray", Feature::NoSqarray),
    ("absolute_timeout", Feature::AbsoluteTimeout),
    ("no_iowait", Feature::NoIowait),
];

/// See [`FEATURES`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    /// One request, many completions.
    Multishot,
    /// Buffers that the kernel picks.
    BufferRings,
    /// One completion, many of those buffers.
    Bundles,
    /// Sending without copying.
    Zerocopy,
    /// Memory pinned once.
    RegisteredBuffers,
    /// A timeout given to io_uring_enter; without it no ring is used.
    ExtArg,
    DeferTaskrun,
    CoopTaskrun,
    NoSqarray,
    /// The timeout as a point in time.
    AbsoluteTimeout,
    /// Waiting that is not accounted as waiting for I/O.
    NoIowait,
}

/// What becomes of a kind's native form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Used,
    /// As if the probe had not found it.
    Hidden,
    /// As if the kernel knew the opcode and refused the request.
    Refused,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Mask {
    features: u32,
    forms: [Form; KINDS],
    /// The variable's value, for the reason text.
    text: String,
}

impl Mask {
    /// Nothing is masked.
    pub fn none() -> Mask {
        Mask { features: 0, forms: [Form::Used; KINDS], text: String::new() }
    }

    /// Reads comma-separated words: features, names of operations, and names of operations after a `!`. `*` is every
    /// operation, `!*` every one after a `!`. Of two words about an operation the later counts.
    pub fn parse(text: &str) -> Result<Mask, Refusal> {
        let mut mask = Mask { text: text.to_owned(), ..Mask::none() };
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            if let Some(&(_, feature)) = FEATURES.iter().find(|(name, _)| *name == word) {
                mask.features |= 1 << feature as u32;
                continue;
            }
            let (name, form) = match word.strip_prefix('!') {
                Some(name) => (name, Form::Refused),
                None => (word, Form::Hidden),
            };
            if name == "*" {
                mask.forms = [form; KINDS];
                continue;
            }
            let Some(def) = op::all().find(|def| def.name == name) else {
                let names: Vec<&str> = FEATURES.iter().map(|(name, _)| *name).collect();
                let text = format!(
                    "the environment variable UPCALL_MASK has \"{word}\", which is neither an operation nor one of {}",
                    names.join(", ")
                );
                return Err(Refusal { error: libc::EINVAL, text: text.into() });
            };
            mask.forms[def.kind as usize] = form;
        }
        Ok(mask)
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.features & 1 << feature as u32 != 0
    }

    /// The kind's native form is as good as absent.
    pub fn hides(&self, kind: u32) -> bool {
        self.forms[kind as usize] == Form::Hidden
    }

    /// The kernel is to refuse the kind's native form.
    pub fn refuses(&self, kind: u32) -> bool {
        self.forms[kind as usize] == Form::Refused
    }

    /// The setup flags that are left, best first.
    pub fn ladder(&self) -> impl Iterator<Item = Rung> {
        LADDER.into_iter().filter(|rung| match rung {
            Rung::DeferredNoArray => !self.has(Feature::NoSqarray) && !self.has(Feature::DeferTaskrun),
            Rung::Deferred => !self.has(Feature::DeferTaskrun),
            Rung::Cooperative => !self.has(Feature::CoopTaskrun),
            Rung::Plain => true,
        })
    }

    /// "" or "; UPCALL_MASK=multishot,statx".
    pub fn reason(&self) -> String {
        if self.text.is_empty() { String::new() } else { format!("; UPCALL_MASK={}", self.text) }
    }
}

/// A request that every kernel answers with -EINVAL.
pub(super) fn refused_entry() -> Entry {
    opcode::Fsync::new(types::Fd(0)).flags(types::FsyncFlags::from_bits_retain(1 << 31)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_features_or_operations() {
        let mask = Mask::parse("multishot, statx,,!recv").expect("three known words");
        assert!(mask.has(Feature::Multishot) && !mask.has(Feature::BufferRings));
        let kind = |name: &str| op::all().find(|def| def.name == name).expect("an operation").kind;
        assert!(mask.hides(kind("statx")) && !mask.refuses(kind("statx")));
        assert!(mask.refuses(kind("recv")) && !mask.hides(kind("recv")));
        assert!(Mask::parse("statx,stat").is_err() && Mask::parse("").is_ok());
    }

    #[test]
    fn a_star_is_every_operation() {
        for (text, hidden, refused) in [("*", true, false), ("!*", false, true), ("!recv,*", true, false)] {
            let mask = Mask::parse(text).expect("known words");
            for def in op::all() {
                let found = (mask.hides(def.kind), mask.refuses(def.kind));
                assert_eq!(found, (hidden, refused), "{} in {text}", def.name);
            }
        }
        let mask = Mask::parse("*,!recv").expect("known words");
        assert_eq!(op::all().filter(|def| mask.refuses(def.kind)).map(|def| def.name).collect::<Vec<_>>(), ["recv"]);
        assert!(Mask::parse("**").is_err() && Mask::parse("!").is_err());
    }

    #[test]
    fn the_last_rung_is_always_there() {
        let mask = Mask::parse("defer_taskrun,coop_taskrun,no_sqarray").expect("known words");
        assert_eq!(mask.ladder().collect::<Vec<_>>(), [Rung::Plain]);
        assert_eq!(Mask::none().ladder().count(), LADDER.len());
    }
}
