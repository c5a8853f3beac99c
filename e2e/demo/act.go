package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Exit codes of the CLI that the demo meets.
const (
	exitDone    = 0
	exitFailed  = 1
	exitDenied  = 3
	exitWaiting = 4
)

// mayfly runs one command as somebody, shows it with its output, and fails
// unless it ends with the code that the story expects. It returns stdout; what
// came to stderr is shown after it.
func (s *stage) mayfly(ctx context.Context, who string, code int, args ...string) (string, error) {
	out, said, err := s.quiet(ctx, who, code, args...)
	s.typed(who, "mayfly "+shown(args))
	s.output(strings.TrimRight(said+out, "\n"))
	return out, err
}

// quiet runs one command without showing it.
func (s *stage) quiet(ctx context.Context, who string, code int, args ...string) (out, said string, err error) {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Dir = s.dir
	cmd.Env = append(environment(), "MAYFLY_HOME="+s.people[who], "MAYFLY_ADDR="+s.addr, "MAYFLY_CACERT="+filepath.Join(s.dir, "dev", "tls", "ca.pem"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", "", err
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return stdout.String(), stderr.String(), fmt.Errorf("mayfly %s ended with %d; the story expects %d\n%s%s", shown(args), got, code, stderr.String(), stdout.String())
	}
	return stdout.String(), stderr.String(), nil
}

// shown quotes a command line as a person would type it.
func shown(args []string) string {
	var out []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " '\"{}[]()$*<>|&;") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// line returns the value of a card's line: "lease  lea_…" of "lease".
func line(output, name string) (string, error) {
	for _, l := range strings.Split(output, "\n") {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(l), name+" "); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", fmt.Errorf("the output has no line %q:\n%s", name, output)
}

// wants fails unless text holds every one of words.
func wants(text string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return fmt.Errorf("the output should hold %q:\n%s", w, text)
		}
	}
	return nil
}

// login opens a database session with a minted credential.
func (s *stage) login(ctx context.Context, url string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// query runs SQL in a session and shows the rows as psql would.
func (s *stage) query(ctx context.Context, db *pgx.Conn, sql string) error {
	s.typed(s.agent+" sql", sql)
	results, err := db.PgConn().Exec(ctx, sql).ReadAll() // values as text, as the server writes them
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) == 0 {
		return fmt.Errorf("no rows: %s", sql)
	}
	var head []string
	for _, f := range results[0].FieldDescriptions {
		head = append(head, f.Name)
	}
	table := [][]string{head}
	for _, values := range results[0].Rows {
		var row []string
		for _, v := range values {
			row = append(row, string(v))
		}
		table = append(table, row)
	}
	s.output(aligned(table))
	return nil
}

func aligned(table [][]string) string {
	widths := make([]int, len(table[0]))
	for _, row := range table {
		for i, v := range row {
			widths[i] = max(widths[i], len([]rune(v)))
		}
	}
	var b strings.Builder
	for _, row := range table {
		text := ""
		for i, v := range row {
			text += fmt.Sprintf("%-*s  ", widths[i], v)
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	return b.String()
}

// refused shows PostgreSQL's own words and fails unless its error has one of
// the SQLSTATEs.
func (s *stage) refused(err error, states ...string) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("PostgreSQL should have refused (%s), but: %w", strings.Join(states, " or "), errors.Join(err, errNotRefused))
	}
	s.output(fmt.Sprintf("%s:  %s  (SQLSTATE %s)", pg.Severity, pg.Message, pg.Code))
	for _, state := range states {
		if pg.Code == state {
			return nil
		}
	}
	return fmt.Errorf("PostgreSQL refused with %s, not with %s", pg.Code, strings.Join(states, " or "))
}

var errNotRefused = errors.New("it was not refused by the server")
