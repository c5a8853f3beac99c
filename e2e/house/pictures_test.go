package house

import (
	"image/png"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Pictures are the one kind of generated file that is committed, because pages
// cannot be read without them. Git keeps each version for ever, so they are few,
// small, and each is on a page.
func TestPicturesAreSmallAndShown(t *testing.T) {
	const maxWidth, maxBytes, maxPictures = 1000, 120 << 10, 8
	x := read(t)
	dir := filepath.Join(x.root, "docs", "pictures")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) > maxPictures {
		t.Errorf("docs/pictures holds %d files; at most %d are allowed", len(entries), maxPictures)
	}
	for _, e := range entries {
		checkPicture(t, dir, e, maxWidth, maxBytes)
		shown := false
		for name, text := range x.texts {
			shown = shown || path.Ext(name) == ".md" && name != "CONTRIBUTING.md" && strings.Contains(text, "pictures/"+e.Name())
		}
		if !shown {
			t.Errorf("docs/pictures/%s: no page shows it", e.Name())
		}
	}
}

func checkPicture(t *testing.T, dir string, e fs.DirEntry, maxWidth int, maxBytes int64) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, e.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c, err := png.DecodeConfig(f)
	switch {
	case err != nil:
		t.Errorf("docs/pictures/%s: no PNG: %v", e.Name(), err)
	case c.Width > maxWidth || info.Size() > maxBytes:
		t.Errorf("docs/pictures/%s: %d pixels wide, %d bytes; at most %d and %d are allowed", e.Name(), c.Width, info.Size(), maxWidth, maxBytes)
	}
}
