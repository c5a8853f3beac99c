package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// pageBlock reads a named block of the page of a kind, as its operators do: the
// broker has the rights that stand there, and no others.
func pageBlock(kind, language, name string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	page, err := os.ReadFile(filepath.Join(filepath.Dir(here), "..", "..", "docs", "issuers", kind+".md"))
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(page), "```"+language+" "+name+"\n")
	text, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		return "", fmt.Errorf("the page of %s has no block %s", kind, name)
	}
	return text, nil
}
