package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/mayfly-broker/mayfly/secret"
)

const (
	maxSecret   = 64 << 10 // the broker's own bound on one secret
	maxDocument = 4 << 20  // of one file given to a command
)

// secretFrom reads a secret from a file, from stdin for "-", or asks for it
// when source is empty and a person is there.
func (s *shell) secretFrom(source, what, flag string) (secret.Text, error) {
	var text string
	switch {
	case source == "-":
		line, err := s.readLine(maxSecret)
		if err != nil {
			return secret.Text{}, failed("no_secret", "%s could not be read from stdin: %v", what, err)
		}
		text = line
	case source != "":
		data, err := readFile(source, maxSecret)
		if err != nil {
			return secret.Text{}, failed("no_secret", "%s (%s): %v", what, flag, err)
		}
		text = strings.TrimRight(string(data), "\r\n")
	case s.interactive():
		typed, err := s.ask(what)
		if err != nil {
			return secret.Text{}, err
		}
		return typed, nil
	default:
		return secret.Text{}, usage("%s is needed: give %s FILE, or %s - to read it from stdin", what, flag, flag)
	}
	if text == "" {
		return secret.Text{}, failed("no_secret", "%s is empty", what)
	}
	return secret.New(text), nil
}

// ask prompts on stderr and reads without echo.
func (s *shell) ask(what string) (secret.Text, error) {
	in, ok := s.in.(*os.File)
	if !ok {
		return secret.Text{}, failed("no_secret", "%s cannot be asked for: stdin is no terminal", what)
	}
	fmt.Fprintf(s.err, "%s: ", what)
	typed, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(s.err)
	if err != nil {
		return secret.Text{}, failed("no_secret", "%s could not be read: %v", what, err)
	}
	if len(typed) == 0 {
		return secret.Text{}, failed("no_secret", "%s is empty", what)
	}
	return secret.New(string(typed)), nil
}

// readLine reads one line of stdin, at most limit bytes, without its end.
func (s *shell) readLine(limit int) (string, error) {
	if s.lines == nil {
		s.lines = bufio.NewReader(s.in)
	}
	var b strings.Builder
	for {
		c, err := s.lines.ReadByte()
		if errors.Is(err, io.EOF) && b.Len() > 0 || err == nil && c == '\n' {
			return strings.TrimRight(b.String(), "\r"), nil
		}
		if err != nil {
			return "", err
		}
		if b.Len() == limit {
			return "", fmt.Errorf("more than %d bytes", limit)
		}
		b.WriteByte(c)
	}
}

// document reads a whole file, or stdin for "-".
func (s *shell) document(source string) ([]byte, error) {
	if source != "-" {
		return readFile(source, maxDocument)
	}
	var in io.Reader = s.in
	if s.lines != nil {
		in = s.lines
	}
	return readAll(in, "stdin", maxDocument)
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f, path, limit)
}

func readAll(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return data, nil
}

// warnArgv says that a secret on the command line is one that others can see.
func (s *shell) warnArgv(what, instead string) {
	s.notice("warning: %s stands on the command line, where every user of this machine and the shell's history can read it; %s", what, instead)
}
