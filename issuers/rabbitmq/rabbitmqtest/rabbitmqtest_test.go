package rabbitmqtest

import (
	"net"
	"strconv"
	"testing"
)

func TestDistPortsAreDistinctFreeAndStayOurs(t *testing.T) {
	seen := map[int]bool{}
	for range 20 {
		n, err := distPort()
		if err != nil {
			t.Fatal(err)
		}
		if seen[n] {
			t.Fatalf("port %d is given twice", n)
		}
		seen[n] = true
		l, err := net.Listen("tcp", ":"+strconv.Itoa(n))
		if err != nil {
			t.Fatalf("the port is not free: %v", err)
		}
		_ = l.Close()
		if hold, err := net.ListenPacket("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n))); err == nil {
			_ = hold.Close()
			t.Fatalf("another process could take port %d", n)
		}
	}
}
