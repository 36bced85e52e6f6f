//! What may be lost when the power goes.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore as _;

use crate::{
    disk::{ChangeKind, Disk},
    step::FileId,
};

/// Of the changes that wait for a sync, the latest so many are also lost, and kept, one by one.
const ONE_BY_ONE: usize = 12;

/// How many random cuts are made after each step.
const RANDOM: usize = 28;

/// One way in which the power may go: what of the unsafe changes reaches the disk all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Whether each change of a name is kept.
    pub(crate) names: Vec<bool>,
    content: BTreeMap<(FileId, usize), Survival>,
}

/// What is left of one change of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Survival {
    Lost,
    Whole,
    /// The file has become longer, and the bytes are missing: they are zeros.
    Size,
    /// Only these sectors.
    Sectors(Vec<bool>),
}

impl Cut {
    pub(crate) fn survival(&self, file: FileId, change: usize) -> &Survival {
        self.content.get(&(file, change)).unwrap_or(&Survival::Lost)
    }

    /// Returns the way in which nothing is lost.
    pub(crate) fn of_nothing(disk: &Disk) -> Self {
        let changes = disk.unsafe_changes();
        Self {
            names: vec![true; disk.unsafe_names()],
            content: changes.iter().map(|(file, change, _)| ((*file, *change), Survival::Whole)).collect(),
        }
    }

    /// Returns the way in which all is lost that is not safe.
    pub(crate) fn of_everything(disk: &Disk) -> Self {
        Self { names: vec![false; disk.unsafe_names()], content: BTreeMap::new() }
    }

    /// Returns ways in which the power may go now. Two of them may leave the same.
    #[must_use]
    pub fn all(disk: &Disk, random: &mut ChaCha8Rng) -> Vec<Self> {
        let changes = disk.unsafe_changes();
        let names = disk.unsafe_names();
        let of = |kept: &dyn Fn(usize) -> bool, survival: &dyn Fn(usize) -> Survival| Self {
            names: (0..names).map(kept).collect(),
            content: changes
                .iter()
                .enumerate()
                .map(|(index, (file, change, _))| ((*file, *change), survival(index)))
                .collect(),
        };
        let (every, none) = (|_| true, |_| false);
        let (whole, lost) = (|_| Survival::Whole, |_| Survival::Lost);
        let mut cuts = vec![
            of(&every, &whole),
            of(&none, &lost),
            of(&every, &lost),
            of(&none, &whole),
            of(&every, &|_| Survival::Size),
        ];
        let latest = changes.iter().position(|(file, change, _)| disk.latest == Some((*file, *change)));
        if let Some(latest) = latest {
            let sectors = changes[latest].2.sectors();
            for torn in 1..sectors {
                let begin = |number: usize| number < torn;
                for part in [&begin as &dyn Fn(usize) -> bool, &|number| !begin(number)] {
                    let kept = Survival::Sectors((0..sectors).map(part).collect());
                    cuts.push(of(&every, &|index| {
                        if index == latest { kept.clone() } else { Survival::Whole }
                    }));
                }
            }
        }
        for one in changes.len().saturating_sub(ONE_BY_ONE)..changes.len() {
            cuts.push(of(&every, &|index| if index == one { Survival::Lost } else { Survival::Whole }));
            cuts.push(of(&every, &|index| if index == one { Survival::Whole } else { Survival::Lost }));
        }
        for one in 0..names {
            cuts.push(of(&|index| index < one, &whole));
            cuts.push(of(&|index| index != one, &whole));
            cuts.push(of(&|index| index == one, &whole));
        }
        if names + changes.len() > 1 {
            cuts.extend((0..RANDOM).map(|_| Self::random(&changes, names, random)));
        }
        cuts
    }

    fn random(changes: &[(FileId, usize, &ChangeKind)], names: usize, random: &mut ChaCha8Rng) -> Self {
        // Mostly kept, half, or mostly lost.
        let share = [230, 128, 25][(random.next_u32() % 3) as usize];
        let mut kept = || random.next_u32() % 256 < share;
        Self {
            names: (0..names).map(|_| kept()).collect(),
            content: changes
                .iter()
                .map(|(file, change, kind)| {
                    let sectors = (0..kind.sectors()).map(|_| kept()).collect();
                    ((*file, *change), Survival::Sectors(sectors))
                })
                .collect(),
        }
    }
}
