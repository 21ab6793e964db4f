//! Dense storage of endpoints; a slot's next occupant has the next generation.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Endpoint;
use crate::id::EndpointId;

/// Grows to the largest number of endpoints there ever was at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// The last freed is used first.
    free: Vec<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slot {
    /// Of its occupant, or of the next.
    generation: u32,
    endpoint: Option<Endpoint>,
}

impl Slots {
    /// Stores what `make` makes of the id.
    pub(super) fn insert(&mut self, make: impl FnOnce(EndpointId) -> Endpoint) -> EndpointId {
        let slot = self.free.pop().unwrap_or_else(|| {
            // From 1, so that an id of zeros names nobody.
            self.slots.push(Slot { generation: 1, endpoint: None });
            u32::try_from(self.slots.len() - 1).expect("endpoints_max is a u32")
        });
        let place = &mut self.slots[slot as usize];
        let id = EndpointId { slot, generation: place.generation };
        place.endpoint = Some(make(id));
        id
    }

    pub(super) fn remove(&mut self, id: EndpointId) -> Option<Endpoint> {
        self.get(id)?;
        let place = &mut self.slots[id.slot as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot);
        place.endpoint.take()
    }

    pub(super) fn get(&self, id: EndpointId) -> Option<&Endpoint> {
        let endpoint = self.slots.get(id.slot as usize)?.endpoint.as_ref();
        endpoint.filter(|endpoint| endpoint.id == id)
    }

    pub(super) fn get_mut(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        let endpoint = self.slots.get_mut(id.slot as usize)?.endpoint.as_mut();
        endpoint.filter(|endpoint| endpoint.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.slots.iter().filter_map(|slot| slot.endpoint.as_ref())
    }

    pub(super) fn invariants(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(endpoint) = &slot.endpoint else {
                let times = self.free.iter().filter(|free| **free as usize == index).count();
                assert_eq!(times, 1, "slot {index} is empty and listed as free {times} times");
                continue;
            };
            assert_eq!(endpoint.id.slot as usize, index, "an endpoint is in its slot");
            assert_eq!(endpoint.id.generation, slot.generation, "and is its present occupant");
        }
        assert_eq!(self.free.len() + self.iter().count(), self.slots.len(), "slots are lost");
    }
}
