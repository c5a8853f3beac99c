package raftstore

const childEnv = "RAFTSTORE_TEST_CHILD"

func runChild() {}
