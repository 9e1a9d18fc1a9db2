use std::sync::Arc;

use crate::error::DataError;
use crate::random::RandomStream;

/// How records are ordered within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// A plain random order (stage 1).
    Random,
    /// `group_by_modality_length` (stage 2): batches of one modality and of similar length.
    ModalityLength,
}

/// What a [`Sampler`] needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerSettings {
    /// How records are ordered.
    pub grouping: Grouping,
    /// Records per micro batch and process.
    pub batch: usize,
    /// Micro batches per optimiser step.
    pub accumulation: usize,
    /// Seed of all orders.
    pub seed: u64,
    /// This process' number, `0..world`.
    pub rank: usize,
    /// Number of data-parallel processes.
    pub world: usize,
}

/// The order of records. Micro batch `position` is a pure function of the settings, so a resumed run needs only the position.
#[derive(Clone)]
pub struct Sampler {
    settings: SamplerSettings,
    lengths: Arc<[i64]>,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Sampler {
    /// A sampler over records with the given modality lengths.
    ///
    /// # Errors
    /// [`DataError::NoWords`] when grouping by length meets a record of length zero; [`DataError::Empty`] without records.
    pub fn new(settings: SamplerSettings, lengths: Arc<[i64]>) -> Result<Self, DataError> {
        if lengths.is_empty() {
            return Err(DataError::Empty("the data set".to_owned()));
        }
        if settings.grouping == Grouping::ModalityLength {
            refuse_zero(&lengths)?;
        }
        let settings = SamplerSettings {
            batch: settings.batch.max(1),
            accumulation: settings.accumulation.max(1),
            world: settings.world.max(1),
            ..settings
        };
        Ok(Self {
            settings,
            lengths,
            epoch: None,
        })
    }

    /// Micro batches of one process per epoch. The last block of an epoch may be smaller; when the blocks do not divide
    /// evenly among the processes, the first ones of the epoch are seen once more so that all processes take part in every step.
    pub fn micro_batches_per_epoch(&self) -> u64 {
        let blocks = self.lengths.len().div_ceil(self.settings.batch);
        blocks.div_ceil(self.settings.world) as u64
    }

    /// Optimiser steps per epoch, at least one (official: micro batches divided by accumulation, rounded down).
    pub fn steps_per_epoch(&self) -> u64 {
        (self.micro_batches_per_epoch() / self.settings.accumulation as u64).max(1)
    }

    /// The records of this process' micro batch number `position`, counted from the start of training over all epochs.
    pub fn micro_batch(&mut self, position: u64) -> Vec<usize> {
        let per_epoch = self.micro_batches_per_epoch();
        let epoch = position / per_epoch;
        let settings = self.settings;
        if self
            .epoch
            .as_ref()
            .is_none_or(|(cached, _)| *cached != epoch)
        {
            let mut random = RandomStream::new(settings.seed, epoch);
            let order = match settings.grouping {
                Grouping::Random => random_order(self.lengths.len(), &mut random),
                Grouping::ModalityLength => grouped_by_modality(
                    &self.lengths,
                    settings.batch,
                    settings.world * settings.accumulation,
                    &mut random,
                ),
            };
            self.epoch = Some((epoch, order));
        }
        let order = self.epoch.as_ref().map_or(&[][..], |(_, order)| order);
        let blocks = order.len().div_ceil(settings.batch);
        let block = ((position % per_epoch) as usize * settings.world + settings.rank) % blocks;
        let start = block * settings.batch;
        order[start..(start + settings.batch).min(order.len())].to_vec()
    }
}

/// A plain random order of `count` records.
pub fn random_order(count: usize, random: &mut RandomStream) -> Vec<usize> {
    random.permutation(count)
}

/// The official `group_by_modality_length` order (training §8).
///
/// `lengths` are in words, negative for text-only records; `batch` is the micro batch, `chunks` = processes × accumulation.
///
/// # Errors
/// [`DataError::NoWords`] for a length of zero.
pub fn group_by_modality_length(
    lengths: &[i64],
    batch: usize,
    chunks: usize,
    random: &mut RandomStream,
) -> Result<Vec<usize>, DataError> {
    refuse_zero(lengths)?;
    Ok(grouped_by_modality(
        lengths,
        batch.max(1),
        chunks.max(1),
        random,
    ))
}

fn refuse_zero(lengths: &[i64]) -> Result<(), DataError> {
    match lengths.iter().position(|&length| length == 0) {
        Some(index) => Err(DataError::NoWords { index }),
        None => Ok(()),
    }
}

fn grouped_by_modality(
    lengths: &[i64],
    batch: usize,
    chunks: usize,
    random: &mut RandomStream,
) -> Vec<usize> {
    let (with_image, text_only): (Vec<usize>, Vec<usize>) =
        (0..lengths.len()).partition(|&index| lengths[index] > 0);
    if with_image.is_empty() || text_only.is_empty() {
        // Literally `grouped(lengths)`: text-only lengths keep their sign, so their groups run from short to long.
        return grouped(lengths, batch, chunks, random);
    }
    let megabatch = batch * chunks;
    let mut megabatches: Vec<Vec<usize>> = Vec::new();
    let mut set_aside: Vec<usize> = Vec::new();
    for members in [with_image, text_only] {
        let member_lengths: Vec<i64> = members.iter().map(|&index| lengths[index].abs()).collect();
        let order = grouped(&member_lengths, batch, chunks, random);
        let ordered: Vec<usize> = order
            .into_iter()
            .map(|position| members[position])
            .collect();
        let mut blocks: Vec<Vec<usize>> =
            ordered.chunks(megabatch).map(<[usize]>::to_vec).collect();
        set_aside.extend(blocks.pop().unwrap_or_default());
        megabatches.append(&mut blocks);
    }
    let order = random.permutation(megabatches.len());
    let mut indices: Vec<usize> = Vec::with_capacity(lengths.len());
    for position in order {
        indices.extend_from_slice(&megabatches[position]);
    }
    set_aside.sort_unstable();
    indices.append(&mut set_aside);
    indices
}

/// Random order, cut in megabatches, each sorted by length descending and dealt into `chunks` of similar total length.
fn grouped(lengths: &[i64], batch: usize, chunks: usize, random: &mut RandomStream) -> Vec<usize> {
    let order = random.permutation(lengths.len());
    let mut indices = Vec::with_capacity(order.len());
    for megabatch in order.chunks(batch * chunks) {
        let mut sorted = megabatch.to_vec();
        sorted.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
        for chunk in even_chunks(&sorted, lengths, chunks) {
            indices.extend(chunk);
        }
    }
    indices
}

fn even_chunks(indices: &[usize], lengths: &[i64], chunks: usize) -> Vec<Vec<usize>> {
    if !indices.len().is_multiple_of(chunks) {
        return (0..chunks)
            .map(|first| {
                indices
                    .iter()
                    .skip(first)
                    .step_by(chunks)
                    .copied()
                    .collect()
            })
            .collect();
    }
    let capacity = indices.len() / chunks;
    let mut dealt: Vec<Vec<usize>> = vec![Vec::with_capacity(capacity); chunks];
    // None once a chunk is full.
    let mut totals: Vec<Option<i64>> = vec![Some(0); chunks];
    for &index in indices {
        let mut shortest: Option<(usize, i64)> = None;
        for (chunk, total) in totals.iter().enumerate() {
            if let Some(total) = total {
                // Strictly smaller: the first chunk wins a tie.
                if shortest.is_none_or(|(_, least)| *total < least) {
                    shortest = Some((chunk, *total));
                }
            }
        }
        let Some((chunk, total)) = shortest else {
            break;
        };
        dealt[chunk].push(index);
        totals[chunk] = (dealt[chunk].len() < capacity).then_some(total + lengths[index]);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_permutation(order: &[usize], count: usize) -> bool {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        sorted.iter().copied().eq(0..count)
    }

    #[test]
    fn chunks_dealt_by_hand() {
        // Sorted descending: lengths 9 8 5 4 2 1 into two chunks of three.
        let lengths = [9, 8, 5, 4, 2, 1];
        // 9→A; 8→B; B(8)<A(9): 5→B=13; A(9)<13: 4→A=13; tie: 2→A (full); 1→B.
        assert_eq!(
            even_chunks(&[0, 1, 2, 3, 4, 5], &lengths, 2),
            [vec![0, 3, 4], vec![1, 2, 5]]
        );
        // Not divisible: every second one.
        assert_eq!(
            even_chunks(&[0, 1, 2, 3, 4], &lengths, 2),
            [vec![0, 2, 4], vec![1, 3]]
        );
    }

    #[test]
    fn nearly_every_batch_has_one_modality() {
        let lengths: Vec<i64> = (0..203)
            .map(|index| {
                if index % 3 == 0 {
                    -(1 + index % 17)
                } else {
                    5 + index % 40
                }
            })
            .collect();
        let (batch, chunks) = (4, 2);
        for seed in 0..20 {
            let order =
                group_by_modality_length(&lengths, batch, chunks, &mut RandomStream::new(seed, 0))
                    .unwrap();
            assert!(is_permutation(&order, lengths.len()));
            let images = lengths.iter().filter(|&&length| length > 0).count();
            let texts = lengths.len() - images;
            let remainder = |count: usize| {
                if count.is_multiple_of(8) {
                    8
                } else {
                    count % 8
                }
            };
            let pure = lengths.len() - remainder(images) - remainder(texts);
            for megabatch in order[..pure].chunks(batch * chunks) {
                let signs: Vec<bool> = megabatch.iter().map(|&index| lengths[index] > 0).collect();
                assert!(signs.iter().all(|&sign| sign == signs[0]));
            }
            // The set-aside rest comes last, sorted by index.
            assert!(order[pure..].is_sorted());
        }
    }

    #[test]
    fn grouping_evens_out_lengths() {
        let mut random = RandomStream::new(3, 0);
        let lengths: Vec<i64> = (0..400).map(|_| 1 + random.below(200) as i64).collect();
        let spread = |order: &[usize]| -> i64 {
            order
                .chunks(8)
                .map(|block| {
                    let sums: Vec<i64> = block
                        .chunks(4)
                        .map(|batch| batch.iter().map(|&index| lengths[index]).sum())
                        .collect();
                    (sums[0] - sums[1]).abs()
                })
                .sum()
        };
        let plain = spread(&random_order(lengths.len(), &mut RandomStream::new(1, 0)));
        let even = spread(
            &group_by_modality_length(&lengths, 4, 2, &mut RandomStream::new(1, 0)).unwrap(),
        );
        assert!(even * 3 < plain, "even {even}, plain {plain}");
    }

    #[test]
    fn one_modality_and_zero_length() {
        let mut random = RandomStream::new(0, 0);
        assert!(is_permutation(
            &group_by_modality_length(&[-3, -1, -2], 2, 1, &mut random).unwrap(),
            3
        ));
        assert!(matches!(
            group_by_modality_length(&[3, 0], 2, 1, &mut random),
            Err(DataError::NoWords { index: 1 })
        ));
    }

    #[test]
    fn position_decides_everything() {
        let lengths: Arc<[i64]> = (0..23)
            .map(|index| if index % 4 == 0 { -2 } else { 3 + index })
            .collect::<Vec<i64>>()
            .into();
        for grouping in [Grouping::Random, Grouping::ModalityLength] {
            let settings = SamplerSettings {
                grouping,
                batch: 4,
                accumulation: 2,
                seed: 7,
                rank: 0,
                world: 1,
            };
            let mut straight = Sampler::new(settings, Arc::clone(&lengths)).unwrap();
            assert_eq!(
                (
                    straight.micro_batches_per_epoch(),
                    straight.steps_per_epoch()
                ),
                (6, 3)
            );
            let all: Vec<Vec<usize>> = (0..18)
                .map(|position| straight.micro_batch(position))
                .collect();
            for position in [17, 3, 9, 0] {
                let mut resumed = Sampler::new(settings, Arc::clone(&lengths)).unwrap();
                assert_eq!(resumed.micro_batch(position), all[position as usize]);
            }
            for epoch in all.chunks(6) {
                assert!(is_permutation(&epoch.concat(), 23));
            }
            assert_ne!(all[0..6], all[6..12]);
        }
    }

    #[test]
    fn processes_share_an_epoch() {
        let lengths: Arc<[i64]> = vec![1; 22].into();
        let at = |rank: usize| {
            let settings = SamplerSettings {
                grouping: Grouping::Random,
                batch: 2,
                accumulation: 1,
                seed: 1,
                rank,
                world: 4,
            };
            let mut sampler = Sampler::new(settings, Arc::clone(&lengths)).unwrap();
            assert_eq!(sampler.micro_batches_per_epoch(), 3);
            (0..3)
                .flat_map(|position| sampler.micro_batch(position))
                .collect::<Vec<usize>>()
        };
        let mut seen: Vec<usize> = (0..4).flat_map(at).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 22);
    }
}
