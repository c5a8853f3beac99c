package ledger

import (
	"fmt"
	"strings"
)

// PluginSpec is a Plugin's spec. The object's name is the kind of target that the
// plugin serves.
type PluginSpec struct {
	// File is a file's name in each node's own plugin directory, never a path.
	File string `json:"file"`
	// SHA256 of that file, 64 hexadecimal digits in small letters.
	SHA256 string `json:"sha256"`
	// User is whom it runs as: a user's name or number on the node's machine.
	User   string       `json:"user,omitempty"`
	Limits PluginLimits `json:"limits,omitzero"`
}

// PluginLimits bound a plugin's process; 0 is the node's default.
type PluginLimits struct {
	MemoryMiB uint64 `json:"memory_mib,omitempty"`
	Files     uint64 `json:"files,omitempty"`
	Processes uint64 `json:"processes,omitempty"`
}

const (
	maxPluginName  = 32
	maxPluginFile  = 128
	maxPluginLimit = 1 << 20 // of each: a TiB of memory, a million files
)

func (p PluginSpec) check(name string) error {
	switch {
	case len(name) > maxPluginName || !wordOf(name, "abcdefghijklmnopqrstuvwxyz0123456789-") || name[0] < 'a':
		return fmt.Errorf("a plugin is named after the kind that it serves: up to %d small letters, digits and -, a letter first", maxPluginName)
	case len(p.File) > maxPluginFile || !wordOf(p.File, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") || p.File[0] == '.' || p.File[0] == '-':
		return fmt.Errorf("file is a file's name in the plugin directory, not a path: letters, digits, . _ and -")
	case len(p.SHA256) != 64 || !wordOf(p.SHA256, "0123456789abcdef"):
		return fmt.Errorf("sha256 is the file's, 64 hexadecimal digits in small letters; run: sha256sum FILE")
	case p.User != "" && (len(p.User) > 32 || !wordOf(p.User, "abcdefghijklmnopqrstuvwxyz0123456789_-") || p.User[0] == '-'):
		return fmt.Errorf("user is the name or the number of a user on the nodes' machines")
	case p.User == "root", p.User != "" && strings.Trim(p.User, "0") == "":
		return fmt.Errorf("user: a plugin does not run as root")
	case max(p.Limits.MemoryMiB, p.Limits.Files, p.Limits.Processes) > maxPluginLimit:
		return fmt.Errorf("limits: at most %d are allowed of each", maxPluginLimit)
	}
	return nil
}

// wordOf says whether a word has at least one character, and none but those.
func wordOf(word, of string) bool { return word != "" && strings.Trim(word, of) == "" }

// servedBy returns a target that a plugin serves, and that the same change does
// not delete.
func (s *state) servedBy(plugin string, deleted func(kind, name string) bool) (target string) {
	s.Scan(bucketObject, objectKey(KindTarget, ""), nil, func(k, _ []byte) bool {
		name := strings.TrimPrefix(string(k), KindTarget+"/")
		if _, spec, ok := s.target(name); ok && spec.Type == plugin && !deleted(KindTarget, name) {
			target = name
		}
		return target == ""
	})
	return target
}
