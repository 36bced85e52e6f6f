//! Cuts the power after every step, in every way, and looks whether what is left is good.

use std::{collections::HashMap, fmt::Debug, path::Path, thread};

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use crate::{
    cut::Cut,
    disk::Disk,
    image::{Image, empty, workspace},
    step::Step,
};

/// Of the random cuts: a test that fails fails again.
const SEED: u64 = 6;

/// How many images are looked at at the same time, at most.
const MAX_WORKERS: usize = 4;

/// What an exploration has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    /// Steps after which the power went.
    pub steps: usize,
    /// Ways in which it did.
    pub cuts: usize,
    /// Different contents of the directory that were left. Each is started from once.
    pub images: usize,
}

/// Cuts the power at the start and after each of the steps. `recover` starts from what is left, in a directory of its own, and returns
/// what it finds; `judge` says what is wrong with that, if so and so much had been acknowledged.
///
/// # Panics
/// When `judge` finds something wrong; the message says after which step, and what was left.
pub fn explore<R, E>(
    mut disk: Disk,
    steps: &[Step],
    recover: impl Fn(&Path) -> R + Sync,
    judge: impl Fn(&R, u64) -> Result<(), E>,
) -> Explored
where
    R: Send,
    E: Debug,
{
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut recovered: HashMap<u64, R> = HashMap::new();
    let mut cuts = 0;
    for number in 0..=steps.len() {
        if let Some(step) = number.checked_sub(1).map(|last| &steps[last]) {
            disk.apply(step);
        }
        let left: Vec<(u64, Image)> = Cut::all(&disk, &mut random)
            .iter()
            .map(|cut| disk.image(cut))
            .map(|image| (image.digest(), image))
            .collect();
        cuts += left.len();
        let mut new: HashMap<u64, &Image> = HashMap::new();
        new.extend(left.iter().filter(|(digest, _)| !recovered.contains_key(digest)).map(|(d, i)| (*d, i)));
        recovered.extend(recover_all(&new.into_iter().collect::<Vec<_>>(), &recover));
        for (digest, image) in &left {
            if let Err(wrong) = judge(&recovered[digest], disk.acknowledged()) {
                let step = number.checked_sub(1).map(|last| brief(&steps[last]));
                panic!(
                    "the power goes after step {number} of {}, {}, with change {} acknowledged, and leaves {}: {wrong:?}",
                    steps.len(),
                    step.unwrap_or_default(),
                    disk.acknowledged(),
                    image.listing(),
                );
            }
        }
    }
    Explored { steps: steps.len(), cuts, images: recovered.len() }
}

fn recover_all<R: Send>(images: &[(u64, &Image)], recover: &(impl Fn(&Path) -> R + Sync)) -> Vec<(u64, R)> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let share = images.len().div_ceil(workers).max(1);
    let work = |images: &[(u64, &Image)]| {
        let root = workspace().expect("there is room for a directory");
        let start = |(digest, image): &(u64, &Image)| {
            empty(root.path()).expect("a test's directory can be emptied");
            image.write_to(root.path()).expect("an image can be written");
            (*digest, recover(root.path()))
        };
        images.iter().map(start).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = images.chunks(share).map(|images| scope.spawn(move || work(images))).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Says what a step was, without the bytes.
fn brief(step: &Step) -> String {
    match step {
        Step::Write { file, offset, bytes } => {
            format!("{} bytes written to {file:?} at {offset}", bytes.len())
        }
        Step::Create { .. }
        | Step::Resize { .. }
        | Step::Sync { .. }
        | Step::SyncFailed { .. }
        | Step::SyncDirectory { .. }
        | Step::Rename { .. }
        | Step::Link { .. }
        | Step::Remove { .. }
        | Step::MakeDirectory { .. }
        | Step::Acknowledged(_) => format!("{step:?}"),
    }
}
