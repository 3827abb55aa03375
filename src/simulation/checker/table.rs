//! Rows by the numbers that they got when they were put in. Nothing is taken out, so every number has its row.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub(super) struct Table<T>(Vec<T>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Table<T> {
    /// Gives the number of the new row.
    pub(super) fn push(&mut self, row: T) -> usize {
        self.0.push(row);
        self.0.len() - 1
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &T)> {
        self.0.iter().enumerate()
    }

    /// Makes rows up to this number, and gives it.
    pub(super) fn row_or_default(&mut self, number: usize) -> &mut T
    where
        T: Default,
    {
        if number >= self.0.len() {
            self.0.resize_with(number + 1, T::default);
        }
        &mut self[number]
    }
}

impl<T> Index<usize> for Table<T> {
    type Output = T;

    fn index(&self, number: usize) -> &T {
        self.0.get(number).expect("the number of a row that was put in")
    }
}

impl<T> IndexMut<usize> for Table<T> {
    fn index_mut(&mut self, number: usize) -> &mut T {
        self.0.get_mut(number).expect("the number of a row that was put in")
    }
}
