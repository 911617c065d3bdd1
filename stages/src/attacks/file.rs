//! PDF files, object by object.

/// A PDF that is being written.
pub(super) struct File {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl File {
    /// A file whose object 1 is the catalog and 2 the page tree: both are
    /// written by [`File::end`] unless they are there already.
    pub(super) fn new() -> Self {
        Self {
            bytes: b"%PDF-1.7\n".to_vec(),
            places: vec![0; 2],
        }
    }

    /// The number that the next object gets.
    pub(super) fn next(&self) -> usize {
        self.places.len() + 1
    }

    /// Adds an object, and answers its number.
    pub(super) fn add(&mut self, body: impl AsRef<[u8]>) -> usize {
        let number = self.next();
        self.places.push(0);
        self.put(number, body);
        number
    }

    /// Writes an object with a number that is known.
    pub(super) fn put(&mut self, number: usize, body: impl AsRef<[u8]>) {
        self.places[number - 1] = self.bytes.len();
        self.bytes.extend(format!("{number} 0 obj\n").into_bytes());
        self.bytes.extend(body.as_ref());
        self.bytes.extend(b"\nendobj\n");
    }

    /// Adds a stream with these entries besides its length.
    pub(super) fn stream(&mut self, entries: &str, content: impl AsRef<[u8]>) -> usize {
        let content = content.as_ref();
        let mut body = format!("<< {entries} /Length {} >>\nstream\n", content.len()).into_bytes();
        body.extend(content);
        body.extend(b"\nendstream");
        self.add(body)
    }

    /// Ends the file with one page.
    pub(super) fn page(mut self, resources: &str, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = self.stream("", content);
        self.page_with(&format!(
            "/MediaBox [0 0 300 300] /Resources << {resources} >> /Contents {content} 0 R"
        ))
    }

    /// Ends the file with one page of these entries.
    pub(super) fn page_with(mut self, entries: &str) -> Vec<u8> {
        let page = self.add(format!("<< /Type /Page /Parent 2 0 R {entries} >>"));
        self.tree(&format!("/Kids [{page} 0 R] /Count 1"))
    }

    /// Ends the file with a page tree of these entries.
    pub(super) fn tree(mut self, entries: &str) -> Vec<u8> {
        self.put(2, format!("<< /Type /Pages {entries} >>"));
        self.end()
    }

    /// Writes the catalog and the table.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.put(1, "<< /Type /Catalog /Pages 2 0 R >>");
        let place = self.bytes.len();
        let n_objects = self.places.len() + 1;
        let mut table = format!("xref\n0 {n_objects}\n0000000000 65535 f \n");
        for place in &self.places {
            table += &format!("{place:010} 00000 n \n");
        }
        table += &format!("trailer\n<< /Size {n_objects} /Root 1 0 R >>\n");
        table += &format!("startxref\n{place}\n%%EOF\n");
        self.bytes.extend(table.into_bytes());
        self.bytes
    }

    /// Ends the file with a table and a trailer of one's own; `PLACE` stands
    /// for where the table is.
    pub(super) fn end_with(mut self, table: &str) -> Vec<u8> {
        let place = self.bytes.len();
        let table = table.replace("PLACE", &place.to_string());
        self.bytes.extend(table.into_bytes());
        self.bytes
            .extend(format!("startxref\n{place}\n%%EOF\n").into_bytes());
        self.bytes
    }
}
